package conf

import (
	"fmt"
	"slices"
	"strings"
)

// rule relates several parameters. It is checked when one of names changes, so that an old violation (an edited file)
// does not stand in the way of other changes.
type rule struct {
	names []string
	text  string // for the manual
	check func(v *Values) error
}

var rules = [...]rule{
	{
		names: []string{string(KeyRedundancyEnabled), string(KeyPgbackupCompression)},
		text:  "`pgsql.pgbackrest.redundancy.enabled` True needs `alation.backup_v2.pgbackup_compression` False: redundancy copies the separate PostgreSQL backup.",
		check: checkRedundancy,
	},
	{
		names: []string{string(KeyRedundancyEnabled), string(KeyEnablePgbackrest)},
		text:  "`pgsql.pgbackrest.redundancy.enabled` True needs `alation.feature_flags.enable_pgbackrest` True: a backup catalog of pg_probackup is not copied.",
		check: checkRedundancyTool,
	},
	{
		names: []string{string(KeyRepoDir), string(KeyProbackupDir)},
		text:  "`pgsql.pg_probackup.dir_name` and `pgsql.pgbackrest.repo_dir_name` must be different directories, none of them in the other.",
		check: checkCatalogDir,
	},
	{
		names: []string{string(KeyCompressType), string(KeyCompressLevel)},
		text:  "`pgsql.pgbackrest.compress_level` must be a level of `pgsql.pgbackrest.compress_type`.",
		check: checkLevel,
	},
	{
		names: []string{string(KeyBlock), string(KeyBundle)},
		text:  "`pgsql.pgbackrest.block` True needs `pgsql.pgbackrest.bundle` True.",
		check: checkBlock,
	},
	{
		names: []string{string(KeyDataTempDir), string(KeyDataDumpDir), string(KeyRepoDir), string(KeyProbackupDir)},
		text: "`alation.backup.data_temp_dir` must neither be nor contain `alation.backup.data_dump_dir`, `pgsql.pgbackrest.repo_dir_name` or `pgsql.pg_probackup.dir_name`: " +
			"staging is emptied.",
		check: checkStaging,
	},
	{
		names: []string{string(KeyKitPassphrase), string(KeyKitRecipient)},
		text:  "`alation.backup.recovery_kit.passphrase` and `alation.backup.recovery_kit.recipient` exclude each other: age encrypts with a passphrase or to keys.",
		check: checkKit,
	},
	{
		names: []string{string(KeyS3LockMode), string(KeyS3LockDays)},
		text:  "`pgsql.pgbackrest.redundancy.s3.object_lock_mode` and `.object_lock_days` go together: a mode needs a number of days, days need a mode.",
		check: checkLock,
	},
	{
		names: []string{string(KeyS3SSE), string(KeyS3CustomerKey), string(KeyS3KMSKey)},
		text:  "`pgsql.pgbackrest.redundancy.s3.sse_customer_key` needs `.sse` `none`, `.kms_key_id` needs `.sse` `aws:kms`: the storage encrypts in one way.",
		check: checkSSE,
	},
}

func checkRedundancy(v *Values) error {
	if !v.Bool(KeyRedundancyEnabled) || !v.Bool(KeyPgbackupCompression) {
		return nil
	}
	return &RuleError{
		Names: []string{string(KeyRedundancyEnabled), string(KeyPgbackupCompression)},
		Reason: fmt.Sprintf("%s = True needs %s = False: redundancy copies the separate PostgreSQL backup, and with compression on there is none; "+
			"first run: alation_conf %s -s False (to keep PostgreSQL in the tarball instead: alation_conf %s -s False)",
			KeyRedundancyEnabled, KeyPgbackupCompression, KeyPgbackupCompression, KeyRedundancyEnabled),
	}
}

func checkRedundancyTool(v *Values) error {
	if !v.Bool(KeyRedundancyEnabled) || v.Bool(KeyEnablePgbackrest) {
		return nil
	}
	return &RuleError{
		Names: []string{string(KeyRedundancyEnabled), string(KeyEnablePgbackrest)},
		Reason: fmt.Sprintf("%s = True needs %s = True: what is copied is closed and checked object by object, which a backup catalog of pg_probackup does not allow; "+
			"to use pg_probackup run: alation_conf %[1]s -s False %[2]s -s False (tarballs with PostgreSQL inside can be copied: %[3]s and %[4]s True)",
			KeyRedundancyEnabled, KeyEnablePgbackrest, KeyTarballCopies, KeyPgbackupCompression),
	}
}

func checkCatalogDir(v *Values) error {
	a, b := cleanPath(v.Path(KeyRepoDir)), cleanPath(v.Path(KeyProbackupDir))
	if a != b && !strings.HasPrefix(a+"/", b+"/") && !strings.HasPrefix(b+"/", a+"/") {
		return nil
	}
	return &RuleError{
		Names:  []string{string(KeyRepoDir), string(KeyProbackupDir)},
		Reason: fmt.Sprintf("%s = %s and %s = %s must be different directories, none of them in the other: a repository and a backup catalog do not go together", KeyRepoDir, a, KeyProbackupDir, b),
	}
}

func checkLevel(v *Values) error {
	least, most := -7, 22
	switch v.String(KeyCompressType) {
	case "none":
		return nil
	case "gz":
		least, most = 0, 9
	case "lz4":
		least, most = -5, 12
	}
	if n := v.Int(KeyCompressLevel); n < least || n > most {
		return &RuleError{
			Names: []string{string(KeyCompressType), string(KeyCompressLevel)},
			Reason: fmt.Sprintf("%s = %d is not a level of %s (%d to %d); set both in one call: alation_conf %s -s TYPE %s -s LEVEL",
				KeyCompressLevel, n, v.String(KeyCompressType), least, most, KeyCompressType, KeyCompressLevel),
		}
	}
	return nil
}

func checkBlock(v *Values) error {
	if !v.Bool(KeyBlock) || v.Bool(KeyBundle) {
		return nil
	}
	return &RuleError{
		Names:  []string{string(KeyBlock), string(KeyBundle)},
		Reason: fmt.Sprintf("%s = True needs %s = True; set both in one call: alation_conf %s -s True %s -s True", KeyBlock, KeyBundle, KeyBundle, KeyBlock),
	}
}

func checkKit(v *Values) error {
	if !v.IsSet(string(KeyKitPassphrase)) || len(v.List(KeyKitRecipient)) == 0 {
		return nil
	}
	return &RuleError{
		Names:  []string{string(KeyKitPassphrase), string(KeyKitRecipient)},
		Reason: fmt.Sprintf("%s and %s exclude each other; to change over: alation_conf --unset %[1]s, then set %[2]s, or the other way round", KeyKitPassphrase, KeyKitRecipient),
	}
}

func checkLock(v *Values) error {
	mode, days := v.String(KeyS3LockMode), v.Int(KeyS3LockDays)
	if (mode == "none") == (days == 0) {
		return nil
	}
	return &RuleError{
		Names:  []string{string(KeyS3LockMode), string(KeyS3LockDays)},
		Reason: fmt.Sprintf("%s = %s and %s = %d do not go together; set both in one call: alation_conf %[1]s -s MODE %[3]s -s DAYS", KeyS3LockMode, mode, KeyS3LockDays, days),
	}
}

func checkSSE(v *Values) error {
	sse := v.String(KeyS3SSE)
	wrong := ""
	switch {
	case v.IsSet(string(KeyS3CustomerKey)) && sse != "none":
		wrong = fmt.Sprintf("%s needs %s = none, which is %s: the storage encrypts in one way", KeyS3CustomerKey, KeyS3SSE, sse)
	case v.String(KeyS3KMSKey) != "" && sse != "aws:kms":
		wrong = fmt.Sprintf("%s needs %s = aws:kms, which is %s; set both in one call", KeyS3KMSKey, KeyS3SSE, sse)
	default:
		return nil
	}
	return &RuleError{Names: []string{string(KeyS3SSE), string(KeyS3CustomerKey), string(KeyS3KMSKey)}, Reason: wrong}
}

func checkStaging(v *Values) error {
	staging := cleanPath(v.Path(KeyDataTempDir))
	for _, kept := range []PathKey{KeyDataDumpDir, KeyRepoDir, KeyProbackupDir} {
		dir := cleanPath(v.Path(kept))
		if dir == staging || strings.HasPrefix(dir, staging+"/") {
			return &RuleError{
				Names:  []string{string(KeyDataTempDir), string(kept)},
				Reason: fmt.Sprintf("%s = %s must not lie in %s = %s: staging is emptied; choose another directory for one of them", kept, dir, KeyDataTempDir, staging),
			}
		}
	}
	return nil
}

// checkRules returns the violations of the rules that changed names touch. A value that is wrong by itself is reported
// in place of the rule that needs it.
func checkRules(v *Values, changed []string) []error {
	var all []error
	for i := range rules {
		r := &rules[i]
		if !slices.ContainsFunc(r.names, func(name string) bool { return slices.Contains(changed, name) }) {
			continue
		}
		wrong := false
		for _, name := range r.names {
			if err := v.problems[name]; err != nil {
				all, wrong = append(all, err), true
			}
		}
		if wrong {
			continue
		}
		if err := r.check(v); err != nil {
			all = append(all, err)
		}
	}
	return all
}

// HostDefaults returns the values that a new store needs on an ordinary host, where path parameters are the host's own:
// the directories of the default layout on the two disks.
func HostDefaults(dataDisk, backupDisk string) []Pair {
	cluster := Cluster{Stanza: "rosemeta", DataDir: dataDisk + "/pgsql/data", Host: "/tmp", Port: 5432, User: "alation"}
	return []Pair{
		{string(KeyDataDumpDir), NewSecret(backupDisk + "/backup")},
		{string(KeyDataTempDir), NewSecret(backupDisk + "/tmp")},
		{string(KeyRepoDir), NewSecret(backupDisk + "/pgbackrest")},
		{string(KeyProbackupDir), NewSecret(backupDisk + "/pg_probackup")},
		{string(KeyFilesPaths), NewSecret(dataDisk + "/site_data")},
		{string(KeyClusters), NewSecret(FormatClusters([]Cluster{cluster}))},
	}
}
