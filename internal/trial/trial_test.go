package trial

import "testing"

func TestPanicIsAnError(t *testing.T) {
	err := Guarded(func() error { panic("out of cheese") })()
	if err == nil {
		t.Error("no error")
	}
}
