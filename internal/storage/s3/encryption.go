package s3

import (
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/storage"
)

// Encryption says how the store encrypts what it keeps. At most one kind may be set; none is the bucket's default.
type Encryption struct {
	S3          bool           // with the store's own keys (SSE-S3)
	KMS         bool           // with a key of the key service (SSE-KMS)
	KMSKey      string         // its id; empty with KMS: the account's key for S3
	CustomerKey storage.Secret // 32 bytes in base64: with a key that we send along each time (SSE-C)
}

// check refuses what does not go together.
func (e *Encryption) check() error {
	if e.KMSKey != "" {
		e.KMS = true
	}
	if e.S3 && e.KMS || (e.S3 || e.KMS) && e.CustomerKey != "" {
		return errors.New("s3: choose one encryption by the store: its own keys, the key service, or a customer key")
	}
	if e.CustomerKey == "" {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(string(e.CustomerKey))
	if err != nil || len(b) != 32 {
		return errors.New("s3: the customer key must be 32 bytes in base64 (for instance from: openssl rand -base64 32)")
	}
	return nil
}

// atRest are the headers for SSE-S3 and SSE-KMS.
func (e *Encryption) atRest() (types.ServerSideEncryption, *string) {
	switch {
	case e.S3:
		return types.ServerSideEncryptionAes256, nil
	case e.KMSKey != "":
		return types.ServerSideEncryptionAwsKms, aws.String(e.KMSKey)
	case e.KMS:
		return types.ServerSideEncryptionAwsKms, nil
	}
	return "", nil
}

// customer are the headers for SSE-C: algorithm, key and the key's MD5; nil without.
func (e *Encryption) customer() (algorithm, key, sum *string) {
	if e.CustomerKey == "" {
		return nil, nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(string(e.CustomerKey))
	if err != nil { // check has seen it
		panic(fmt.Sprintf("customer key: %v", err))
	}
	h := md5.Sum(b)
	return aws.String("AES256"), aws.String(string(e.CustomerKey)), aws.String(base64.StdEncoding.EncodeToString(h[:]))
}
