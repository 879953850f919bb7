package remotetest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"smelt/images/remote"
)

// Credentials are those of the servers that this package starts.
var Credentials = remote.Credentials{User: "smelt", Password: "hunter2hunter2"}

// hashed is the password as htpasswd keeps it (bcrypt).
const hashed = "$2a$04$A2RaYcxQOMDzmN6KqhBv5e/3BIV4dUp2Ee9skp6T23DuKJ.ZQjBDq"

// Registry starts Debian's docker-registry, which wants a password, and returns
// the address of a repository.
func Registry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		skip(t, "docker-registry is not installed (.ci/deps)")
	}
	dir, addr := t.TempDir(), freeAddr(t)
	users := filepath.Join(dir, "users")
	conf := filepath.Join(dir, "config.yml")
	for path, text := range map[string]string{
		users: Credentials.User + ":" + hashed + "\n",
		conf: fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\n"+
			"http: {addr: %q}\nauth: {htpasswd: {realm: smelt, path: %q}}\n", filepath.Join(dir, "data"), addr, users),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, addr, nil, program, "serve", conf)
	return "oci+http://" + addr + "/hall/images"
}

// S3 starts versitygw, an S3 server in front of a folder, and returns the
// address of a prefix in a bucket. Building it takes a minute: it is a module
// of its own that no other part of Smelt needs.
func S3(t *testing.T) string {
	t.Helper()
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("builds an S3 server: set SMELT_TEST_E2E=1")
	}
	dir, addr := t.TempDir(), freeAddr(t)
	program := filepath.Join(dir, "versitygw")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/versity/versitygw/cmd/versitygw")
	build.Dir = filepath.Join(moduleRoot(t), "images", "remote", "remotetest", "s3server")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build versitygw: %v\n%s", err, out)
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	start(t, addr, []string{"ROOT_ACCESS_KEY=" + Credentials.User, "ROOT_SECRET_KEY=" + Credentials.Password},
		program, "--quiet", "--port", addr, "posix", data)
	cl, err := minio.New(addr, &minio.Options{Creds: credentials.NewStaticV4(Credentials.User, Credentials.Password, "")})
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.MakeBucket(t.Context(), "smelt", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return "s3+http://" + addr + "/smelt/hall/images"
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// freeAddr is an address that nobody listens on now.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a server until the test ends, and waits until it answers.
func start(t *testing.T, addr string, env []string, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		log.Close()
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s said:\n%.4000s", filepath.Base(name), b)
		}
	})
	cl := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(time.Minute); ; {
		resp, err := cl.Get("http://" + addr + "/")
		if err == nil {
			resp.Body.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v", filepath.Base(name), err)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not answer: %v", filepath.Base(name), err)
		}
	}
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && len(b) > 12 && string(b[:12]) == "module smelt" {
			return dir
		}
	}
	t.Fatal("not inside the module")
	return ""
}
