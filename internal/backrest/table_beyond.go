package backrest

// beyond are options that pgBackRest does not have. It passes over them in a configuration file with a warning.
var beyond = []Option{
	{Name: "repo-s3-object-lock-mode", Kind: Enum, Group: Repo, Section: Global, On: onRepo, Allow: "governance compliance", Needs: "repo-type=s3"},
	{Name: "repo-s3-object-lock-period", Kind: Time, Group: Repo, Section: Global, On: onRepo, Range: "1d 3650d", Needs: "repo-s3-object-lock-mode", Required: onRepo},
	{Name: "repo-s3-sse", Kind: Enum, Group: Repo, Section: Global, On: onRepo, Allow: "s3 kms", Needs: "repo-type=s3"},
	{Name: "repo-s3-storage-class", Kind: String, Group: Repo, Section: Global, On: onRepo, Needs: "repo-type=s3"},
}
