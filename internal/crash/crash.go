//go:build !chaos

// Package crash marks the places where a death or a lost answer hurts most: before and after each commit, publish,
// acknowledgement, tick, save and change of a lease. In a binary built with the tag chaos a test can have the process killed
// there, or the operation fail. In every other one these functions are empty and inlined, and not even the places' names are
// left: the tests of chaos/ hold that.
//
// An operation has one name and two points, name/before and name/after.
package crash

// Before stands before an operation. An error is the operation's own, and says that nothing was done.
func Before(string) error { return nil }

// After stands behind an operation that returned err, and returns what the caller is to take for its result. An error in the place
// of nil is an answer that was lost: the operation is done, and nobody was told.
func After(_ string, err error) error { return err }

// CutAfter is [After] where the answer is lost with the connection on which it would have come, a *pgxpool.Conn.
func CutAfter(_ string, err error, _ any) error { return err }
