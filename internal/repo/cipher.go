package repo

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
)

// Encryption of the repository (format page, section 8.3): aes-256-cbc as `openssl enc -aes-256-cbc -md sha1` writes it.
//
//	normal   Salted__ | salt, 8 bytes | ciphertext, n × 16 bytes, PKCS#7 padding
//	raw                 salt, 8 bytes | ciphertext, n × 16 bytes, PKCS#7 padding
//
// Key and IV come from pass and salt by EVP_BytesToKey with SHA-1 and one iteration. Nothing authenticates the ciphertext;
// only the SHA-1 values of manifest and file names do.

const (
	cipherMagic = "Salted__"
	saltSize    = 8
)

// ErrCipher says that an encrypted stream cannot be decrypted: the wrong pass, or damage. It comes together with ErrCorrupt.
var ErrCipher = errors.New("cannot decrypt: the wrong cipher pass, or damaged data")

// deriveKey is OpenSSL's EVP_BytesToKey with SHA-1 and one iteration: D1 = SHA1(pass‖salt), Dn = SHA1(Dn-1‖pass‖salt); the
// key is the first 32 bytes of D1‖D2‖D3, the IV the next 16.
func deriveKey(pass Secret, salt []byte) (key, iv []byte) {
	var derived, block []byte
	for len(derived) < 32+aes.BlockSize {
		h := sha1.New()
		h.Write(block)
		h.Write([]byte(pass))
		h.Write(salt)
		block = h.Sum(nil)
		derived = append(derived, block...)
	}
	return derived[:32], derived[32 : 32+aes.BlockSize]
}

// newEncrypter draws a salt and gives the header to write in front of the ciphertext, and the mode to encrypt with.
func newEncrypter(pass Secret, raw bool) (header []byte, mode cipher.BlockMode, err error) {
	header = make([]byte, 0, len(cipherMagic)+saltSize)
	if !raw {
		header = append(header, cipherMagic...)
	}
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, nil, fmt.Errorf("draw a salt: %w", err)
	}
	key, iv := deriveKey(pass, salt)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, fmt.Errorf("prepare aes-256-cbc: %w", err)
	}
	return append(header, salt...), cipher.NewCBCEncrypter(block, iv), nil
}

// padding appends PKCS#7 padding for a text that so far has n bytes after the last whole block.
func padding(b []byte, n int) []byte {
	pad := aes.BlockSize - n%aes.BlockSize
	for range pad {
		b = append(b, byte(pad))
	}
	return b
}

// decrypter reads ciphertext from r and gives the text. The last block is held back until the end of r, because only
// there the padding can be told from text.
//
//	buf   [ delivered | text      | ciphertext, at most what one Read brought | free ]
//	       0           from        text                               end
type decrypter struct {
	r    *source
	pass Secret
	raw  bool
	mode cipher.BlockMode // nil before the header is read
	buf  []byte
	from int // first byte of text not yet delivered
	text int // end of text, begin of ciphertext
	end  int // end of ciphertext
	err  error
}

func newDecrypter(r *source, spec StreamSpec, buf []byte) *decrypter {
	return &decrypter{r: r, pass: spec.Pass, raw: spec.Raw, buf: buf[:cap(buf)]}
}

// Read implements io.Reader.
func (d *decrypter) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for d.from == d.text {
		if d.err != nil {
			return 0, d.err
		}
		d.err = d.fill()
	}
	n := copy(p, d.buf[d.from:d.text])
	d.from += n
	return n, nil
}

// fill decrypts the next part. It gives io.EOF together with the last text.
func (d *decrypter) fill() error {
	if d.mode == nil {
		if err := d.readHeader(); err != nil {
			return err
		}
	}
	d.end = copy(d.buf, d.buf[d.text:d.end])
	d.from, d.text = 0, 0
	n, err := io.ReadAtLeast(d.r, d.buf[d.end:], aes.BlockSize+1)
	d.end += n
	switch {
	case err == nil:
		d.decrypt((d.end - 1) / aes.BlockSize * aes.BlockSize)
		return nil
	case d.r.err == io.EOF:
		return d.last()
	case d.r.err != nil:
		return d.r.err // not err: what r calls an unexpected end is no end of the stream
	}
	return err
}

func (d *decrypter) decrypt(n int) {
	d.mode.CryptBlocks(d.buf[:n], d.buf[:n])
	d.text = n
}

// last decrypts what is left after the end of r and takes the padding off.
func (d *decrypter) last() error {
	if d.end == 0 || d.end%aes.BlockSize != 0 {
		return fmt.Errorf("%w: encrypted data ends within a block: %w", ErrCorrupt, io.ErrUnexpectedEOF)
	}
	d.decrypt(d.end)
	pad := int(d.buf[d.text-1])
	if pad == 0 || pad > aes.BlockSize {
		d.text = 0
		return fmt.Errorf("%w: %w", ErrCorrupt, ErrCipher)
	}
	for _, b := range d.buf[d.text-pad : d.text] {
		if int(b) != pad {
			d.text = 0
			return fmt.Errorf("%w: %w", ErrCorrupt, ErrCipher)
		}
	}
	d.text -= pad
	d.end = d.text
	return io.EOF
}

func (d *decrypter) readHeader() error {
	header := make([]byte, len(cipherMagic)+saltSize)
	if d.raw {
		header = header[:saltSize]
	}
	if _, err := io.ReadFull(d.r, header); err != nil {
		if d.r.err == io.EOF {
			return fmt.Errorf("%w: too short for an encrypted stream: %w", ErrCorrupt, io.ErrUnexpectedEOF)
		}
		return err
	}
	salt := header[len(header)-saltSize:]
	if !d.raw && string(header[:len(cipherMagic)]) != cipherMagic {
		return fmt.Errorf("%w: %w: not an encrypted stream (it does not begin with %s)", ErrCorrupt, ErrCipher, cipherMagic)
	}
	key, iv := deriveKey(d.pass, salt)
	block, err := aes.NewCipher(key)
	if err != nil {
		return fmt.Errorf("prepare aes-256-cbc: %w", err)
	}
	d.mode = cipher.NewCBCDecrypter(block, iv)
	return nil
}
