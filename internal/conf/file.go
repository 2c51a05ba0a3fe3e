package conf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	fileFormat = 1       // newest format of the file that this version writes and reads
	fileMax    = 8 << 20 // bytes; a larger file is not a parameter store
)

// file is the content of the store's file, with everything kept that this version does not know.
type file struct {
	members map[string]json.RawMessage // all members but "values"
	values  map[string]json.RawMessage
}

// sealedValue is how a secret stands in the file.
type sealedValue struct {
	Sealed string `json:"sealed"`
}

func newFile() *file {
	return &file{
		members: map[string]json.RawMessage{"format": json.RawMessage(fmt.Sprint(fileFormat))},
		values:  map[string]json.RawMessage{},
	}
}

// readFile reads the store's file. A missing file is fs.ErrNotExist: an instance without its store does not run on
// defaults, which would quietly leave out what the operator had configured.
func readFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("parameter store: %w: bring it back from a copy, or run `holdfast init` for an empty one", err)
		}
		return nil, fmt.Errorf("parameter store: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err != nil {
		return nil, fmt.Errorf("parameter store: %w", err)
	}
	parsed, err := parseFile(data)
	if err != nil {
		return nil, fmt.Errorf("parameter store %s: %w", path, err)
	}
	return parsed, nil
}

func parseFile(data []byte) (*file, error) {
	if len(data) > fileMax {
		return nil, fmt.Errorf("larger than %d bytes", fileMax)
	}
	parsed := &file{}
	if err := json.Unmarshal(data, &parsed.members); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	var format int
	if err := json.Unmarshal(parsed.members["format"], &format); err != nil || format < 1 {
		return nil, errors.New(`member "format" is missing or not a number`)
	}
	if format > fileFormat {
		return nil, fmt.Errorf("format %d is newer than this version of Holdfast knows (%d): install the newer version", format, fileFormat)
	}
	if raw, ok := parsed.members["values"]; ok {
		if err := json.Unmarshal(raw, &parsed.values); err != nil {
			return nil, errors.New(`member "values" is not an object`)
		}
		delete(parsed.members, "values")
	}
	if parsed.values == nil {
		parsed.values = map[string]json.RawMessage{}
	}
	return parsed, nil
}

// encode returns the file's bytes, members sorted.
func (f *file) encode() ([]byte, error) {
	all := make(map[string]any, len(f.members)+1)
	for name, raw := range f.members {
		all[name] = raw
	}
	all["values"] = f.values
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(all); err != nil {
		return nil, fmt.Errorf("parameter store: %w", err)
	}
	return buf.Bytes(), nil
}
