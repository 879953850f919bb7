package inventory

import (
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write docs/lifecycle.svg anew")

func TestPictureIsCurrent(t *testing.T) {
	const file = "../docs/lifecycle.svg"
	want := Picture()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the table says: go test ./inventory -run Picture -update", file)
	}
}
