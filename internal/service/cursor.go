package service

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
)

const cursorSum = 4 // bytes of a checksum: against mistakes, not against malice, which would gain nothing

// Cursor makes an opaque cursor of a position in one list. scope names the list and what filters it: a cursor is good for the
// same one only.
func Cursor(scope string, position []byte) string {
	return base64.RawURLEncoding.EncodeToString(append(sumCursor(scope, position), position...))
}

// ReadCursor returns the position of a cursor, of size bytes, or the problem cursor-invalid.
func ReadCursor(scope, cursor string, size int) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) != cursorSum+size || !bytes.Equal(b[:cursorSum], sumCursor(scope, b[cursorSum:])) {
		return nil, Problem(http.StatusUnprocessableEntity, "cursor-invalid", "The cursor is none of this list. Begin without one.")
	}
	return b[cursorSum:], nil
}

func sumCursor(scope string, position []byte) []byte {
	h := sha256.New()
	h.Write([]byte(scope))
	h.Write([]byte{0})
	h.Write(position)
	return h.Sum(nil)[:cursorSum]
}
