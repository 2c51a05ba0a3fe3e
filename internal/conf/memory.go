package conf

import "errors"

// ValuesOf is a reading of parameters that are in no store, for a place that has none yet. Everything that is wrong is reported
// at once, as Store.Set would; such errors answer to ErrRefused. Secrets stay in memory.
func ValuesOf(pairs []Pair) (*Values, error) {
	v := &Values{text: map[string]string{}, sealed: map[string]string{}, problems: map[string]error{}, open: map[string]Secret{}}
	var all []error
	for _, p := range pairs {
		k := Lookup(p.Name)
		if k == nil {
			all = append(all, &UnknownKeyError{Name: p.Name, Nearest: Nearest(p.Name)})
			continue
		}
		canonical, err := k.Parse(p.Value.Reveal())
		switch {
		case err != nil:
			all = append(all, err)
		case k.Secret() && canonical != "":
			v.sealed[k.Name], v.open[k.Name] = "in memory", NewSecret(canonical)
		case !k.Secret():
			v.text[k.Name] = canonical
		}
	}
	if len(all) == 0 {
		all = checkRules(v, pairNames(pairs))
	}
	if err := errors.Join(all...); err != nil {
		return nil, err
	}
	return v, nil
}
