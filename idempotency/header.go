package idempotency

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/textproto"
)

// EncodeHeader returns the headers of a kept answer as HTTP/1.1 writes them, for stores: JSON would change bytes that are not
// UTF-8.
func EncodeHeader(h http.Header) []byte {
	var b bytes.Buffer
	if err := h.Write(&b); err != nil { // a Buffer takes all
		panic(err)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// DecodeHeader reads what EncodeHeader wrote.
func DecodeHeader(b []byte) (http.Header, error) {
	h, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(b))).ReadMIMEHeader()
	if err != nil {
		return nil, fmt.Errorf("idempotency: a kept answer's headers: %w", err)
	}
	return http.Header(h), nil
}
