package s3

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Some stores answer for a while from before a change: what was just written is missing, what was just removed is listed.
// recent remembers what this process has changed lately, so that such an answer is asked again before it is believed.
// Stores that are always right, as Amazon's, pay nothing for it.

// staleFor is how long a store may lag behind.
const staleFor = time.Minute

// recentMax bounds the memory; of more than that the oldest are forgotten.
const recentMax = 4096

type change struct {
	at      time.Time
	removed bool
}

type recent struct {
	mu    sync.Mutex
	names map[string]change
	order []string // by age; may name a thing twice
}

func (r *recent) note(name string, removed bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names == nil {
		r.names = map[string]change{}
	}
	r.names[name] = change{now, removed}
	r.order = append(r.order, name)
	if len(r.order) > recentMax {
		for _, old := range r.order[:recentMax/2] {
			if now.Sub(r.names[old].at) > 0 {
				delete(r.names, old)
			}
		}
		r.order = slices.Clone(r.order[recentMax/2:])
	}
}

// written says that this process wrote the object a moment ago.
func (r *recent) written(name string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.names[name]
	return ok && !c.removed && now.Sub(c.at) < staleFor
}

// removed says that this process removed the object a moment ago.
func (r *recent) removed(name string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.names[name]
	return ok && c.removed && now.Sub(c.at) < staleFor
}

// writtenBelow are the names with that beginning that this process wrote a moment ago, sorted.
func (r *recent) writtenBelow(prefix string, now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name, c := range r.names {
		if !c.removed && now.Sub(c.at) < staleFor && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
