// Package holdfast is the map of the program; it holds no code.
//
// Holdfast backs up and restores a whole application at one recovery point: PostgreSQL, files and a Kafka event bus.
// Its PostgreSQL engine is its own and reads and writes the pgBackRest repository format.
//
// Where things are (all under internal/, an arrow points at what a package may import; arrows go down only):
//
//	cmd/holdfast ─► cli          command tree, printing, exit codes; joins everything, alone reads the environment
//	cli ─► web                   pages, JSON API, health, metrics ─► action catalog conf
//	cli ─► action                backup_all, restore, expire, drill; components ─► engine probackup eventbus catalog repo storage pg tarball durable rds
//	       engine                verbs on one stanza: backup, restore, archive, info, check, copy ─► repo storage pg durable
//	       probackup             the operator's pg_probackup: its command lines and what it prints
//	       eventbus              dump and load of Kafka topics and offsets; its archive format
//	       tarball               the .tar.gz outputs and the way files go in and out of them ─► durable
//	       catalog               backup sets: which pieces make one restorable whole ─► storage
//	       repo                  the repository format, bytes only: info files, manifest, streams ─► storage zstdfast
//	       zstdfast              an encoder of Zstandard frames that is fast on WAL
//	       storage               named objects: the interface, posix, memory, wrappers ─► durable
//	       storage/<vendor>      one adapter each, the SDK kept inside ─► storage storage/transport
//	       storage/transport     HTTP to a store: certificates, limits on silence, what may be repeated ─► storage
//	       storage/bucket        what adapters for object stores share ─► storage, storage/transport
//	       pg                    PostgreSQL as files and as a server
//	       rds                   DB snapshots of Amazon RDS, and DB instances made of them; the SDK kept inside
//	cli ─► conf                  the parameter table and its store ─► durable schedule
//	       kit                   the recovery kit: its document, and how age encrypts it
//	       backrest              pgBackRest's command line, environment and configuration files
//	       runlog                the log of runs: its lines, and reading it while it grows and rotates
//	       scrub                 takes secrets out of texts for somebody else
//	       said                  what another program prints, line by line
//	       instance              root directory, disks, shell, init script ─► durable
//	       schedule  notify      calendar arithmetic and the loop; delivering a message
//	       durable               crash-safe file replacement
//	helpers for tests            pg/pgtest, eventbus/kafkatest, storage/storagetest, test/stores
//
// internal/arch_test.go holds these edges, the calls that only cmd and cli may make, and the ceilings (a file 800 lines,
// a function 100). Packages below cli take Options structs, return errors, and print nothing.
//
// Words, each used for one thing:
//
//	instance        one installed application: root directory, data disk, backup disk, parameter store
//	component       a part of its state: postgres, files, eventbus
//	stanza          one PostgreSQL cluster as the repository knows it
//	repository      where backups and WAL of stanzas are kept
//	manifest        the list of all files of one backup, with sums
//	segment         one WAL file, 16 MiB as a rule
//	label           the name of one backup: 20261122-235609F
//	backup set      all that one backup_all made, tied by one recovery point
//	recovery point  PostgreSQL restore point, event-bus offsets and file state, taken together
//	redundancy      the copy of the separate PostgreSQL backup on external storage
//	DB snapshot     what Amazon RDS takes in place of a backup of a database that is its DB instance
//	drill           an automatic restore into a scratch place, started and checked
package holdfast
