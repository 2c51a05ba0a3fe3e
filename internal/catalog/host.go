package catalog

// PostgresHost is what one cluster needed of its machine at the recovery point, to be compared with the one it is restored on.
// Empty: it could not be found out.
type PostgresHost struct {
	Server    string         `json:"server"`            // the server's words for its version
	Arch      string         `json:"arch"`              // amd64, arm64, …
	Libc      string         `json:"libc,omitempty"`    // "glibc 2.36"
	ICU       string         `json:"icu,omitempty"`     // major version of the library
	Preload   []string       `json:"preload,omitempty"` // shared_preload_libraries
	Locales   []string       `json:"locales,omitempty"` // libc's, that the configuration names
	Databases []DatabaseHost `json:"databases"`         // by name
	Unseen    []string       `json:"unseen,omitempty"`  // databases that could not be looked into
}

// DatabaseHost is that of one database.
type DatabaseHost struct {
	Name       string      `json:"name"`
	Provider   string      `json:"provider"` // libc, icu or builtin: who sorts text in it
	Locale     string      `json:"locale"`   // that sorts
	Collate    string      `json:"collate"`  // libc's names, which are needed whoever sorts
	Ctype      string      `json:"ctype"`
	Version    string      `json:"version,omitempty"` // of the default collation
	Extensions []Extension `json:"extensions,omitempty"`
}

// Extension is one that a database has.
type Extension struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}
