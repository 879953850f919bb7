// Package pgtest starts a real PostgreSQL for tests and benchmarks: Debian's
// binaries, a folder of its own, a unix socket and no network.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver
)

// ErrMissing says that PostgreSQL's server is not installed here.
var ErrMissing = errors.New("no PostgreSQL server in /usr/lib/postgresql (Debian: apt install postgresql)")

// Server is one running PostgreSQL.
type Server struct {
	dir  string
	bin  string
	cmd  *exec.Cmd
	cred *syscall.Credential // nil when we are not root
	n    atomic.Int64
}

// Start makes a new cluster and runs it with the given settings
// ("fsync=off"). The caller must Stop it.
func Start(ctx context.Context, settings ...string) (*Server, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return nil, ErrMissing
	}
	slices.Sort(found)
	s := &Server{bin: filepath.Dir(found[len(found)-1])}
	if os.Geteuid() == 0 { // the server refuses to run as root
		cred, err := account("postgres")
		if err != nil {
			return nil, err
		}
		s.cred = cred
	}
	var err error
	if s.dir, err = os.MkdirTemp("", "smelt-pg-"); err != nil {
		return nil, err
	}
	if err := s.start(ctx, settings); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func account(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (s *Server) start(ctx context.Context, settings []string) error {
	if s.cred != nil {
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	data := filepath.Join(s.dir, "data")
	out, err := s.command(ctx, "initdb", "-D", data, "-U", "smelt", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	args := []string{"-D", data, "-k", s.dir, "-c", "listen_addresses=", "-c", "max_connections=100"}
	for _, v := range settings {
		args = append(args, "-c", v)
	}
	s.cmd = s.command(context.WithoutCancel(ctx), "postgres", args...)
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stderr = log
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	return s.await(ctx)
}

// command runs a PostgreSQL program that ends when this process does.
func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	c.Dir = s.dir
	c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGQUIT}
	return c
}

func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	db, err := sql.Open("pgx", s.dsn("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("postgres does not answer: %w: %s", err, log)
		case <-tick.C:
		}
	}
}

func (s *Server) dsn(database string) string {
	q := url.Values{"host": {s.dir}, "user": {"smelt"}}
	return "postgres:///" + database + "?" + q.Encode()
}

// Database makes an empty database and returns its DSN.
func (s *Server) Database(ctx context.Context) (string, error) {
	db, err := sql.Open("pgx", s.dsn("postgres"))
	if err != nil {
		return "", err
	}
	defer db.Close()
	name := "t" + strconv.FormatInt(s.n.Add(1), 10)
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	return s.dsn(name), nil
}

// Stop ends the server by its pid and removes its folder.
func (s *Server) Stop() error {
	if s.cmd != nil {
		// SIGINT is PostgreSQL's fast shutdown: open sessions are ended.
		if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		if err := s.cmd.Wait(); err != nil && !strings.Contains(err.Error(), "exit status") {
			return err
		}
	}
	return os.RemoveAll(s.dir)
}
