package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// The virtual BMCs of each run have other keys and passwords: what was learned
// of those of the run before would lock it out.
func TestClearRun(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	for _, name := range []string{"state/bmc/10.77.0.22_443.pin", "state/refused.json", "state/secrets/adopted.srv-b.age", "state/console/srv-a.1",
		"state/smelt.db", "disks/srv-a.raw", "state/secrets/identity", "state/images/blob", "state/site.key"} {
		if err := os.MkdirAll(filepath.Dir(o.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(o.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := clearRun(o); err != nil {
		t.Fatal(err)
	}
	var left []string
	err := filepath.WalkDir(o.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, d.Name())
		}
		return err
	})
	if err != nil || len(left) != 3 {
		t.Errorf("left are %v (%v), want the identity of the secrets, the images and the site's key", left, err)
	}
}
