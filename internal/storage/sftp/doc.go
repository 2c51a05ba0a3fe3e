// Package sftp keeps a repository on a server that speaks SFTP, laid out as on a local file system.
package sftp
