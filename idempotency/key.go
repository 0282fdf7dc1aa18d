package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
)

// HeaderKey names a request, and HeaderReplayed marks an answer that was given before. No standard has the second; it is what
// Stripe sends.
const (
	HeaderKey      = "Idempotency-Key"
	HeaderReplayed = "Idempotent-Replayed"
)

// A KeyKind says which keys a route takes.
type KeyKind int

// AnyKey takes any key. UUIDKey takes UUIDs. UUIDv7Key takes UUIDs of version 7, whose time says how old a request is: one that
// is past its retention is refused and never executed, where AnyKey takes it for a new one.
const (
	AnyKey KeyKind = iota
	UUIDKey
	UUIDv7Key
)

// maxKey is the longest key in bytes.
const maxKey = 255

var (
	errKeyMissing = errors.New("this request needs an Idempotency-Key header")
	errKeysDiffer = errors.New("the Idempotency-Key and the key in the body differ")
	errKeyInvalid = errors.New(`Idempotency-Key must come once, as 1 to 255 printable ASCII characters without spaces in double quotes`)
)

// rawKey is what is taken as a key without the quotes of a structured field.
var rawKey = regexp.MustCompile(`^[A-Za-z0-9._~:+/=-]{1,255}$`)

// parseKey reads the lines of an Idempotency-Key header: one RFC 8941 string, whose parameters are ignored, or, unless strict,
// the same without its quotes.
func parseKey(lines []string, strict bool) (string, error) {
	switch {
	case len(lines) == 0:
		return "", errKeyMissing
	case len(lines) > 1:
		return "", errKeyInvalid
	case !strict && rawKey.MatchString(lines[0]):
		return lines[0], nil
	}
	quoted, ok := strings.CutPrefix(lines[0], `"`)
	if !ok {
		return "", errKeyInvalid
	}
	var key strings.Builder
	for i := 0; i < len(quoted); i++ {
		c := quoted[i]
		switch {
		case c == '"':
			rest := quoted[i+1:]
			if key.Len() < 1 || key.Len() > maxKey || rest != "" && rest[0] != ';' {
				return "", errKeyInvalid
			}
			return key.String(), nil
		case c == '\\' && i+1 < len(quoted) && (quoted[i+1] == '"' || quoted[i+1] == '\\'):
			i++
			c = quoted[i]
		case c <= ' ' || c > '~' || c == '\\':
			return "", errKeyInvalid
		}
		key.WriteByte(c)
	}
	return "", errKeyInvalid
}

// bodyKey is the key of a request whose header has that key, or that error, and whose body names one, or "".
func bodyKey(header string, err error, named string) (string, error) {
	switch {
	case named == "" || err != nil && !errors.Is(err, errKeyMissing):
		return header, err
	case len(named) > maxKey || strings.ContainsFunc(named, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "", errKeyInvalid
	case err == nil && header != named:
		return "", errKeysDiffer
	}
	return named, nil
}

// quoteKey is the key as an RFC 8941 string.
func quoteKey(key string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
}

// maxAhead is how far a client's clock may be ahead.
const maxAhead = 5 * time.Minute

// mintedAt checks key against what the route takes. The time is a version 7 UUID's, and zero for a route that does not ask for it.
func (k KeyKind) mintedAt(key string, now time.Time) (time.Time, error) {
	if k == AnyKey {
		return time.Time{}, nil
	}
	id, err := uuid.Parse(key)
	if err != nil || len(key) != len(id.String()) { // Parse takes a URN and braces, too
		return time.Time{}, fmt.Errorf("%w: here it must be a UUID", errKeyInvalid)
	}
	if k == UUIDKey {
		return time.Time{}, nil
	}
	if id.Version() != 7 {
		return time.Time{}, fmt.Errorf("%w: here it must be a UUID of version 7", errKeyInvalid)
	}
	at := time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
	if at.After(now.Add(maxAhead)) {
		return time.Time{}, fmt.Errorf("%w: its time is more than %s ahead", errKeyInvalid, maxAhead)
	}
	return at, nil
}

// A KeyHash is the SHA-256 of an idempotency key: what is stored, and of which the first 8 bytes are logged.
type KeyHash [sha256.Size]byte

// HashKey returns the hash of a key as a client means it, without quotes.
func HashKey(key string) KeyHash { return sha256.Sum256([]byte(key)) }

// String is short, and says nothing of the key itself.
func (h KeyHash) String() string { return hex.EncodeToString(h[:8]) }
