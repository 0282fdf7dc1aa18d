package outbox_test

import (
	"os/exec"
	"testing"
)

// TestWhatAnImporterInherits holds testdata/importer/go.mod, in which every module is listed that comes along with outbox: one
// that is added, such as a server or a telemetry SDK, is seen in review, and not by those who import.
func TestWhatAnImporterInherits(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"mod", "tidy", "-diff"}, {"vet", "."}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = "testdata/importer"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("go %v: %v\n%s", args, err, out)
		}
	}
}
