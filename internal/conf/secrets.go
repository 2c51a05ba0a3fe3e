package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Secrets returns the text of every secret that the file holds, for who has to keep them out of something, also where other values are
// wrong; a secret that stands in the file unsealed is among them. The error names those that can't be opened; the others are
// returned all the same.
func (s *Store) Secrets() ([]Secret, error) {
	f, err := readFile(s.o.Path)
	if err != nil {
		return nil, err
	}
	var all []Secret
	var problems []error
	var key *sealer
	for _, name := range slices.Sorted(maps.Keys(f.values)) {
		k := Lookup(name)
		if k != nil && !k.Secret() {
			continue
		}
		var sealed sealedValue
		var text string
		switch {
		case json.Unmarshal(f.values[name], &sealed) == nil && sealed.Sealed != "":
			if key == nil {
				if key, err = loadSealer(s.o.KeyPath); err != nil {
					return all, errors.Join(append(problems, fmt.Errorf("%s: %w", name, err))...)
				}
			}
			secret, err := key.open(name, sealed.Sealed)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", name, err))
				continue
			}
			all = append(all, secret)
		case k != nil && json.Unmarshal(f.values[name], &text) == nil && text != "":
			all = append(all, NewSecret(text))
		}
	}
	return all, errors.Join(problems...)
}
