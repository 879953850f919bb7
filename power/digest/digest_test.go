package digest

import (
	"strings"
	"testing"
)

// RFC 7616 section 3.9.1.
func TestRFC7616(t *testing.T) {
	headers := []string{
		`Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=MD5, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
		`Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
	}
	const cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
	for want, list := range map[string][]string{
		"8ca523f5e9506fed4657c9700eebdbec":                                 headers[:1],
		"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1": headers, // the stronger one
	} {
		c, err := Parse(list)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.authorization("Mufasa", "Circle of Life", "GET", "/dir/index.html", cnonce); !strings.Contains(got, `response="`+want+`"`) {
			t.Errorf("%s\nwant response %s", got, want)
		}
	}
}

// RFC 2069: no qop.
func TestWithoutQop(t *testing.T) {
	c, err := Parse([]string{`Basic realm="x"`, `digest realm="testrealm@host.com",nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"`})
	if err != nil {
		t.Fatal(err)
	}
	// The corrected example of RFC 2069 section 2.4 (errata 749).
	got := c.authorization("Mufasa", "CircleOfLife", "GET", "/dir/index.html", "x")
	if !strings.Contains(got, `response="1949323746fe6a43ef61f9606e7febea"`) || strings.Contains(got, "qop") {
		t.Error(got)
	}
}

func TestRefused(t *testing.T) {
	for name, h := range map[string]string{
		"other scheme":    `Basic realm="x"`,
		"no nonce":        `Digest realm="x"`,
		"MD5-sess":        `Digest realm="x", nonce="y", algorithm=MD5-sess`,
		"auth-int":        `Digest realm="x", nonce="y", qop="auth-int"`,
		"open quote":      `Digest realm="x, nonce=y`,
		"twice":           `Digest nonce="x", nonce="y"`,
		"control":         "Digest nonce=\"a\r\nX: y\"",
		"control, token":  "Digest nonce=a\rb",
		"escaped control": "Digest nonce=\"a\\\nb\"",
		"endless":         `Digest nonce="` + strings.Repeat("x", 5000) + `"`,
	} {
		if c, err := Parse([]string{h}); err == nil {
			t.Errorf("%s: accepted as %+v", name, c)
		}
	}
}

// Whatever a device asks, the answer is one header line, and asks for nothing
// that was not offered.
func FuzzParse(f *testing.F) {
	f.Add(`Digest realm="a", nonce="b\"c", qop="auth", algorithm=SHA-256`)
	f.Add(`Digest nonce=b,opaque=""`)
	f.Fuzz(func(t *testing.T, h string) {
		c, err := Parse([]string{h})
		if err != nil {
			if c != (Challenge{}) {
				t.Fatalf("%+v beside %v", c, err)
			}
			return
		}
		a := c.Authorization("user", "secret", "GET", "/rpc")
		if strings.ContainsFunc(a, control) || strings.Contains(a, "secret") {
			t.Fatalf("%q", a)
		}
		if _, err := parse(strings.TrimPrefix(a, "Digest ")); err != nil {
			t.Fatalf("%q: %v", a, err)
		}
	})
}
