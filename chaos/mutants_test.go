package chaos

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// A patch that no longer applies breaks no guard, and would be noticed only when make mutants is run.
func TestEachMutantApplies(t *testing.T) {
	t.Parallel()
	patches, err := filepath.Glob("mutants/*.patch")
	if err != nil || len(patches) == 0 {
		t.Fatalf("%d patches, %v", len(patches), err)
	}
	for _, patch := range patches {
		absolute, err := filepath.Abs(patch)
		if err != nil {
			t.Fatal(err)
		}
		// As the runner does, and nothing is changed.
		apply := exec.CommandContext(t.Context(), "git", "apply", "--check", "-C1", "--recount", absolute)
		apply.Dir = repository
		if out, err := apply.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", patch, err, out)
		}
	}
}
