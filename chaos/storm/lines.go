package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

// lines is a file of JSON, a value on each line. Its methods may be called from any goroutine; the first error is told by close.
type lines struct {
	mu  sync.Mutex
	f   *os.File
	buf *bufio.Writer
	err error
}

func newLines(path string) (*lines, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &lines{f: f, buf: bufio.NewWriter(f)}, nil
}

func (l *lines) add(v any) {
	text, err := json.Marshal(v)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		_, err = l.buf.Write(append(text, '\n'))
	}
	if l.err == nil {
		l.err = err
	}
}

// flush writes what was added so far to the file.
func (l *lines) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.buf.Flush())
}

func (l *lines) close() error { return errors.Join(l.flush(), l.f.Close()) }

// readLines reads what lines wrote.
func readLines[T any](path string) ([]T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []T
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var v T
		if err := json.Unmarshal(scan.Bytes(), &v); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(all)+1, err)
		}
		all = append(all, v)
	}
	return all, scan.Err()
}
