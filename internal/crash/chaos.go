//go:build chaos

package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Variable names the file by which a point is armed. Its line is point=mode:n, such as relay-tick/after=kill:3: when the point is
// passed the third time the process is killed, by mode kill, or the operation has an error, by mode error. The file is removed then,
// which tells that it was passed, and lets the next process live. It is read at each pass, so that a process is armed as it runs; a
// file has to come whole, by a rename.
const Variable = "ONCEBOX_CRASH"

// An Error is one that was asked for.
type Error struct {
	Point string
	sent  bool
}

func (e *Error) Error() string { return "crash: " + e.Point }

// SafeToRetry is pgconn's word for what was never sent.
func (e *Error) SafeToRetry() bool { return !e.sent }

// Before is as it is without the tag.
func Before(operation string) error {
	if armed.pass(operation + "/before") {
		return &Error{Point: operation + "/before"}
	}
	return nil
}

// After is as it is without the tag.
func After(operation string, err error) error {
	if err == nil && armed.pass(operation+"/after") {
		return &Error{Point: operation + "/after", sent: true}
	}
	return err
}

// CutAfter is as it is without the tag.
func CutAfter(operation string, err error, over any) error {
	lost := After(operation, err)
	if err == nil && lost != nil {
		_ = over.(interface{ Conn() *pgx.Conn }).Conn().Close(context.Background())
	}
	return lost
}

var armed = arm{file: os.Getenv(Variable)}

type arm struct {
	file string

	mu     sync.Mutex
	line   string // as it was read last
	passes int    // since that line stands there
}

// pass says whether a point is to fail now. It does not return where the process is to be killed.
func (a *arm) pass(point string) bool {
	if a.file == "" {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := os.ReadFile(a.file)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		panic(err)
	}
	if string(b) != a.line {
		a.line, a.passes = string(b), 0
	}
	name, how, _ := strings.Cut(a.line, "=")
	if name != point {
		return false
	}
	mode, n, _ := strings.Cut(how, ":")
	if a.passes++; strconv.Itoa(a.passes) != n {
		return false
	}
	a.line = ""
	fmt.Fprintln(os.Stderr, "crash:", string(b))
	if err := os.Remove(a.file); err != nil {
		panic(err)
	}
	switch mode {
	case "kill":
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {}
	case "error":
		return true
	}
	panic("crash: no mode " + mode)
}
