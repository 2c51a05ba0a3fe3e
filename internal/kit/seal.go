package kit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// Errors of Open, each for another next step of the operator.
var (
	ErrNotSealed  = errors.New("it is not a file that age has encrypted")
	ErrPassphrase = errors.New("the passphrase is not the one that it is encrypted with")
	ErrIdentity   = errors.New("the identity is none of those that it is encrypted to")
	ErrDamaged    = errors.New("it is damaged: it is not as it was written")
	ErrWanted     = errors.New("it is opened in another way")
)

// Work factors of scrypt, as powers of two: 2^18 takes a second and 256 MiB, which is age's own choice; a file that asks for
// more than 2^20 is refused.
const (
	workFactor    = 18
	maxWorkFactor = 20
)

// MinPassphrase is how many characters a passphrase has to have: the file lies on external storage, and holds every secret.
const MinPassphrase = 12

// Lock says whom a kit is encrypted to: the holders of the identities of Recipients, or who knows Passphrase. Never both: age
// does not mix them.
type Lock struct {
	Recipients []string // age1…
	Passphrase Secret
	WorkFactor int // of the passphrase, 0: the usual; for tests
}

// CheckRecipient says whether a text is an age recipient. The error does not show it: it may be a secret key by mistake.
func CheckRecipient(text string) error {
	if strings.HasPrefix(strings.ToUpper(strings.TrimSpace(text)), "AGE-SECRET-KEY-") {
		return errors.New("this is a secret key (an identity); what is wanted is its public key, which begins with age1 (age-keygen -y FILE prints it)")
	}
	all, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil || len(all) != 1 {
		return errors.New("it is not a public key of age: it begins with age1 (age-keygen -y FILE prints it)")
	}
	return nil
}

// recipients are those of the lock, for age.
func (l Lock) recipients() ([]age.Recipient, error) {
	switch {
	case l.Passphrase != "" && len(l.Recipients) > 0:
		return nil, errors.New("a recovery kit is encrypted to recipients or with a passphrase, not both")
	case l.Passphrase != "":
		r, err := age.NewScryptRecipient(string(l.Passphrase))
		if err != nil {
			return nil, err
		}
		factor := l.WorkFactor
		if factor == 0 {
			factor = workFactor
		}
		r.SetWorkFactor(factor)
		return []age.Recipient{r}, nil
	case len(l.Recipients) == 0:
		return nil, errors.New("a recovery kit needs a recipient or a passphrase")
	}
	var all []age.Recipient
	for i, text := range l.Recipients {
		if err := CheckRecipient(text); err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, err
		}
		all = append(all, r...)
	}
	return all, nil
}

// Seal encrypts a document.
func Seal(doc []byte, l Lock) ([]byte, error) {
	to, err := l.recipients()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err == nil {
		_, err = w.Write(doc)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt the recovery kit: %w", err)
	}
	return out.Bytes(), nil
}

// MaxSealed bounds the file, in bytes: age adds a header for each recipient and 16 bytes to every 64 KiB.
const MaxSealed = MaxSize + 1<<20

// WantsPassphrase says how a kit is opened: with a passphrase, or with an identity.
func WantsPassphrase(sealed []byte) (bool, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte("age-encryption.org/v1\n-> "))
	if !ok {
		return false, ErrNotSealed
	}
	return bytes.HasPrefix(rest, []byte("scrypt ")), nil
}

// Unlock says how a kit is opened: one of the two.
type Unlock struct {
	Identities Secret // the content of a file of age identities, as age-keygen writes it
	Passphrase Secret
}

// identities are those of u, for age.
func (u Unlock) identities(wantsPassphrase bool) ([]age.Identity, error) {
	switch {
	case wantsPassphrase && u.Passphrase == "":
		return nil, fmt.Errorf("%w: it is encrypted with a passphrase, not to an identity", ErrWanted)
	case wantsPassphrase:
		id, err := age.NewScryptIdentity(string(u.Passphrase))
		if err != nil {
			return nil, err
		}
		id.SetMaxWorkFactor(maxWorkFactor)
		return []age.Identity{id}, nil
	case u.Identities == "":
		return nil, fmt.Errorf("%w: it is encrypted to an identity, not with a passphrase", ErrWanted)
	}
	ids, err := age.ParseIdentities(strings.NewReader(string(u.Identities)))
	if err != nil { // age's error may quote the file
		return nil, errors.New("the identity file is not as age-keygen writes it: lines that begin with AGE-SECRET-KEY-")
	}
	return ids, nil
}

// Open decrypts a kit and reads its document. Errors: ErrNotSealed, ErrWanted, ErrPassphrase, ErrIdentity, ErrDamaged, ErrFormat.
func Open(sealed []byte, u Unlock) (*Kit, error) {
	if len(sealed) > MaxSealed {
		return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrFormat, MaxSealed)
	}
	wants, err := WantsPassphrase(sealed)
	if err != nil {
		return nil, err
	}
	ids, err := u.identities(wants)
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), ids...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none) && wants:
		return nil, ErrPassphrase
	case errors.As(err, &none):
		return nil, ErrIdentity
	case err != nil:
		return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	doc, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	return Parse(doc)
}
