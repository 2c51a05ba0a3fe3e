package cli

import (
	"strconv"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
)

// blockSizes are the sizes that the repository's options choose for block incremental.
func (r *backrestRun) blockSizes(key int) (engine.BlockSizes, error) {
	b := engine.BlockSizes{SuperFull: r.c.Int("repo-block-size-super-full", key), SuperDiff: r.c.Int("repo-block-size-super", key)}
	days := func(v string) (int64, error) {
		n, err := strconv.ParseInt(v, 10, 32)
		return n * 24 * 60 * 60, err
	}
	count := func(v string) (int64, error) { return strconv.ParseInt(v, 10, 32) }
	var err error
	steps := func(name string, pairs map[string]string, from, to func(string) (int64, error)) (list []engine.BlockStep) {
		for k, v := range pairs {
			var s engine.BlockStep
			var ferr, terr error
			if s.From, ferr = from(k); ferr != nil {
				v = k
			} else if s.Value, terr = to(v); terr == nil {
				list = append(list, s)
				continue
			}
			err = coded(codeValue, "'"+v+"' is not valid for '"+keyedName(name, key)+"' option")
		}
		return list
	}
	b.Files = steps("repo-block-size-map", r.c.Hash("repo-block-size-map", key), backrest.ParseSize, backrest.ParseSize)
	b.Ages = steps("repo-block-age-map", r.c.Hash("repo-block-age-map", key), days, count)
	b.Checksums = steps("repo-block-checksum-size-map", r.c.Hash("repo-block-checksum-size-map", key), backrest.ParseSize, count)
	if err == nil {
		if err = b.Check(); err != nil {
			err = &codeError{codeValue, err}
		}
	}
	return b, err
}

// keyedName is repo-path as repo1-path.
func keyedName(name string, key int) string {
	return "repo" + strconv.Itoa(key) + name[len("repo"):]
}
