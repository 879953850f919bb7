package config

import "testing"

// A version changes with each store, also of the same value, and not else.
func TestSecretVersion(t *testing.T) {
	s, err := OpenSecrets(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	next := func(what string, names ...string) {
		t.Helper()
		v, err := s.Version(names...)
		if err != nil || seen[v] {
			t.Errorf("%s: version %q (seen %v), error %v", what, v, seen[v], err)
		}
		if again, err := s.Version(names...); err != nil || again != v {
			t.Errorf("%s: version %q, then %q, error %v", what, v, again, err)
		}
		seen[v] = true
	}
	next("nothing stored", "a", "b")
	for _, name := range []string{"a", "b", "b"} {
		if err := s.Set(name, NewSecret([]byte("same"))); err != nil {
			t.Fatal(err)
		}
		next("after "+name, "a", "b")
	}
	next("the other place", "", "a")
	if _, err := s.Version("../x"); err == nil {
		t.Error("a name that is none has a version")
	}
}
