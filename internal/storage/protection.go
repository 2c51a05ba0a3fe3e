package storage

import "context"

// Grade is how a fact bears on what a store holds.
type Grade string

const (
	Good    Grade = "good"
	Weak    Grade = "weak"    // whoever gets the credentials, or anybody, can harm it in this way
	Unknown Grade = "unknown" // the store does not say, or does not let these credentials ask
)

// Fact is one thing about how a store protects what it holds.
type Fact struct {
	Name   string `json:"name"` // versioning, object-lock, removal, version-removal, public-access, encryption, clock
	Grade  Grade  `json:"grade"`
	Text   string `json:"text"`             // what was found
	Advice string `json:"advice,omitempty"` // what to do about it
}

// Protector is offered by stores that can tell how well they protect what they hold.
type Protector interface {
	// Protection asks the store, and tries with an object called probe, which must not exist and is not there afterwards unless
	// these credentials can't remove it. The error is for a store that can't be asked at all.
	Protection(ctx context.Context, probe string) ([]Fact, error)
}
