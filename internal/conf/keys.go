package conf

// The types of names make a getter refuse the wrong kind of parameter at compile time; a test proves that each constant's
// type agrees with the table.
type (
	BoolKey     string // read with Values.Bool
	IntKey      string // read with Values.Int
	SecondsKey  string // read with Values.Duration
	StringKey   string // text, enumeration, address or version; read with Values.String
	PathKey     string // read with Values.Path, resolved by instance.Resolve
	ListKey     string // read with Values.List
	SecretKey   string // read with Values.Secret
	ClustersKey string // read with Values.Clusters
)

// Names of all parameters, in the order of Table.
const (
	KeyChefTimeout         SecondsKey  = "alation.backup.chef_timeout"
	KeyDataDumpDir         PathKey     = "alation.backup.data_dump_dir"
	KeyDataTempDir         PathKey     = "alation.backup.data_temp_dir"
	KeyEBRestoreFile       PathKey     = "alation.backup.eb_restore_file"
	KeyPostScript          PathKey     = "alation.backup.post_script.path"
	KeyPostScriptTimeout   SecondsKey  = "alation.backup.post_script.timeout"
	KeyTarballCopies       BoolKey     = "alation.backup.redundancy.enabled"
	KeyRestoreFile         PathKey     = "alation.backup.restore_file"
	KeyScheduledDay        ListKey     = "alation.backup.scheduled_day"
	KeyScheduledHour       IntKey      = "alation.backup.scheduled_hour"
	KeyScheduledMinute     IntKey      = "alation.backup.scheduled_minute"
	KeyIncrementalEnabled  BoolKey     = "alation.backup_v2.incremental.enabled"
	KeyIncrementalFull     IntKey      = "alation.backup_v2.incremental.full_every"
	KeyPgbackupCompression BoolKey     = "alation.backup_v2.pgbackup_compression"
	KeyRetentionDays       IntKey      = "alation.backup_v2.retention.days"
	KeyRetentionSets       IntKey      = "alation.backup_v2.retention.sets"
	KeyEnablePgbackrest    BoolKey     = "alation.feature_flags.enable_pgbackrest"
	KeyBaseURL             StringKey   = "alation.install.base_url"
	KeyVersion             StringKey   = "alation.version"
	KeyBusBrokers          ListKey     = "eventbus.brokers"
	KeyBusEnabled          BoolKey     = "eventbus.enabled"
	KeyBusCAFile           PathKey     = "eventbus.security.ca_file"
	KeyBusProtocol         StringKey   = "eventbus.security.protocol"
	KeyBusSASLMechanism    StringKey   = "eventbus.security.sasl_mechanism"
	KeyBusSASLPassword     SecretKey   = "eventbus.security.sasl_password"
	KeyBusSASLUser         StringKey   = "eventbus.security.sasl_user"
	KeyBusTopics           ListKey     = "eventbus.topics"
	KeyFilesExclude        ListKey     = "files.exclude"
	KeyFilesPaths          ListKey     = "files.paths"
	KeyToolPath            PathKey     = "pgsql.backup.tool_path"
	KeyClusters            ClustersKey = "pgsql.clusters"
	KeyArchiveTimeout      SecondsKey  = "pgsql.pgbackrest.archive_timeout"
	KeyBlock               BoolKey     = "pgsql.pgbackrest.block"
	KeyBundle              BoolKey     = "pgsql.pgbackrest.bundle"
	KeyCipherPass          SecretKey   = "pgsql.pgbackrest.cipher_pass"
	KeyCompressLevel       IntKey      = "pgsql.pgbackrest.compress_level"
	KeyCompressType        StringKey   = "pgsql.pgbackrest.compress_type"
	KeyProcessMax          IntKey      = "pgsql.pgbackrest.process_max"
	KeyAzureAccount        StringKey   = "pgsql.pgbackrest.redundancy.azure.account"
	KeyAzureCAFile         PathKey     = "pgsql.pgbackrest.redundancy.azure.ca_file"
	KeyAzureContainer      StringKey   = "pgsql.pgbackrest.redundancy.azure.container"
	KeyAzureEndpoint       StringKey   = "pgsql.pgbackrest.redundancy.azure.endpoint"
	KeyAzureKey            SecretKey   = "pgsql.pgbackrest.redundancy.azure.key"
	KeyAzureKeyType        StringKey   = "pgsql.pgbackrest.redundancy.azure.key_type"
	KeyAzureURIStyle       StringKey   = "pgsql.pgbackrest.redundancy.azure.uri_style"
	KeyRedundancyEnabled   BoolKey     = "pgsql.pgbackrest.redundancy.enabled"
	KeyGCSBucket           StringKey   = "pgsql.pgbackrest.redundancy.gcs.bucket"
	KeyGCSCAFile           PathKey     = "pgsql.pgbackrest.redundancy.gcs.ca_file"
	KeyGCSEndpoint         StringKey   = "pgsql.pgbackrest.redundancy.gcs.endpoint"
	KeyGCSKeyFile          PathKey     = "pgsql.pgbackrest.redundancy.gcs.key_file"
	KeyGCSUserProject      StringKey   = "pgsql.pgbackrest.redundancy.gcs.user_project"
	KeyRedundancyPath      PathKey     = "pgsql.pgbackrest.redundancy.posix.path"
	KeyRedundancyPrefix    StringKey   = "pgsql.pgbackrest.redundancy.prefix"
	KeyS3Bucket            StringKey   = "pgsql.pgbackrest.redundancy.s3.bucket"
	KeyS3CAFile            PathKey     = "pgsql.pgbackrest.redundancy.s3.ca_file"
	KeyS3Endpoint          StringKey   = "pgsql.pgbackrest.redundancy.s3.endpoint"
	KeyS3Key               SecretKey   = "pgsql.pgbackrest.redundancy.s3.key"
	KeyS3Region            StringKey   = "pgsql.pgbackrest.redundancy.s3.region"
	KeyS3Secret            SecretKey   = "pgsql.pgbackrest.redundancy.s3.secret"
	KeyS3SSE               StringKey   = "pgsql.pgbackrest.redundancy.s3.sse"
	KeyS3StorageClass      StringKey   = "pgsql.pgbackrest.redundancy.s3.storage_class"
	KeyS3URIStyle          StringKey   = "pgsql.pgbackrest.redundancy.s3.uri_style"
	KeySFTPFingerprint     StringKey   = "pgsql.pgbackrest.redundancy.sftp.fingerprint"
	KeySFTPHost            StringKey   = "pgsql.pgbackrest.redundancy.sftp.host"
	KeySFTPKnownHosts      PathKey     = "pgsql.pgbackrest.redundancy.sftp.known_hosts_file"
	KeySFTPPassphrase      SecretKey   = "pgsql.pgbackrest.redundancy.sftp.passphrase"
	KeySFTPPath            StringKey   = "pgsql.pgbackrest.redundancy.sftp.path"
	KeySFTPPort            IntKey      = "pgsql.pgbackrest.redundancy.sftp.port"
	KeySFTPPrivateKey      PathKey     = "pgsql.pgbackrest.redundancy.sftp.private_key_file"
	KeySFTPUser            StringKey   = "pgsql.pgbackrest.redundancy.sftp.user"
	KeyRedundancyType      StringKey   = "pgsql.pgbackrest.redundancy.type"
	KeyRepoDir             PathKey     = "pgsql.pgbackrest.repo_dir_name"
	KeyRestoreSource       StringKey   = "pgsql.pgbackrest.restore.source"
	KeySnapshotEnabled     BoolKey     = "snapshot.enabled"
)
