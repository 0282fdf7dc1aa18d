package idempotency_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Fingerprints are compared by Equal, and Equal takes as long for any two.
func TestFingerprintsAreComparedInConstantTime(t *testing.T) {
	t.Run("fingerprint-compare-constant-time-code-check", func(t *testing.T) {
		var all bytes.Buffer
		for _, pattern := range []string{"*.go", "redisstore/*.go"} {
			files, err := filepath.Glob(pattern)
			must(t, err)
			files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
			for _, f := range files {
				b, err := os.ReadFile(f)
				must(t, err)
				all.Write(b)
			}
		}
		for _, wrong := range []string{`(?i)(fingerprint|\bfp)\)? *[!=]= `, `[!=]= *\w*\.?[fF]ingerprint`, `bytes\.Equal\(`} {
			if found := regexp.MustCompile(wrong).FindAllString(all.String(), -1); len(found) > 0 {
				t.Errorf("compared otherwise: %q", found)
			}
		}
		if n := strings.Count(all.String(), "subtle.ConstantTimeCompare"); n != 1 {
			t.Errorf("subtle.ConstantTimeCompare is called in %d places, want 1", n)
		}
	})
}
