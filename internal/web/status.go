package web

import (
	"time"

	"holdfast/internal/catalog"
)

// Status is one look at an instance.
type Status struct {
	Now      time.Time
	Version  string         // of Holdfast
	Sets     []*catalog.Set // of the catalogue, oldest first
	Jobs     []Job
	Copy     *Copy    // nil: nothing is to be copied
	Problems []string // why the instance is not well; empty: it is
}

// Job is one job of the daemon.
type Job struct {
	Name    string
	Next    time.Time // zero: never
	Running bool
	Last    *Run // the run that was started last
	Good    *Run // the last that did its work
	Runs    map[string]int
}

// Run is one run of a job.
type Run struct {
	ID      string
	Started time.Time
	Ended   time.Time // zero: it goes on
	Outcome string
}

// Copy is how far the copy on external storage is behind.
type Copy struct {
	Lag  time.Duration // since the last complete copying of WAL began
	Last []catalog.CopiedWAL
}

// lastGood is the newest set that is complete and in which no check found anything, nil without.
func (s *Status) lastGood() *catalog.Set {
	for i := len(s.Sets) - 1; i >= 0; i-- {
		if s.Sets[i].Good() {
			return s.Sets[i]
		}
	}
	return nil
}

// component is what of a set belongs to one component.
type component struct {
	name  string
	taken time.Time // to what time it can be restored
	bytes int64     // stored
}

// components are the parts of a set: for PostgreSQL one for each cluster. In the included mode the size of PostgreSQL's
// part is what the backup stored, and is part of the tarball's.
func components(s *catalog.Set) []component {
	var out []component
	if s.Recovery == nil {
		return nil
	}
	for _, p := range s.Recovery.Postgres {
		out = append(out, component{"postgres/" + p.Stanza, p.Taken.To, p.RepoBytes})
	}
	if f := s.Recovery.Files; f != nil {
		c := component{name: "files", taken: f.Taken.To}
		if p := s.Piece(catalog.Application); p != nil {
			c.bytes = p.Size
		}
		out = append(out, c)
	}
	if b := s.Recovery.EventBus; b != nil {
		c := component{name: "eventbus", taken: b.Taken.To}
		if p := s.Piece(catalog.EventBus); p != nil {
			c.bytes = p.Size
		}
		out = append(out, c)
	}
	return out
}
