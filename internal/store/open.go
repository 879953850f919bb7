package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	_ "modernc.org/sqlite" // the "sqlite" driver
)

//go:embed migrations/*.sql
var embedded embed.FS

// A dialect is what differs between the two databases.
type dialect struct {
	name     goose.Dialect
	clock    string             // SELECT of the database's time in microseconds
	snapshot sql.IsolationLevel // of a transaction that reads one state of everything
}

var (
	sqlite   = dialect{goose.DialectSQLite3, `SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)`, sql.LevelDefault}
	postgres = dialect{goose.DialectPostgres, `SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)`, sql.LevelRepeatableRead}
)

// text is the statement as this database wants its parameters.
func (d dialect) text(query string) string {
	if d == sqlite {
		return strings.ReplaceAll(query, "$", "?")
	}
	return query
}

// readers is the size of the read pool.
const readers = 4

// Open opens and migrates the database that dsn names: "sqlite:PATH" or
// "postgres://...". A database from a newer smelt is ErrNewer.
func Open(ctx context.Context, dsn string) (*Store, error) {
	s := &Store{
		jobs:    make(chan *job),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
		changed: make(chan struct{}),
	}
	var err error
	path, isFile := strings.CutPrefix(dsn, "sqlite:")
	switch {
	case isFile && path != "":
		err = s.openSQLite(path)
	case strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://"):
		err = s.openPostgres(dsn)
	default:
		// The DSN is not repeated: it may carry a password.
		return nil, errors.New("store: want sqlite:PATH or postgres://HOST/DATABASE")
	}
	if err == nil {
		err = s.prepare(ctx)
	}
	if err != nil {
		s.abandon()
		return nil, fmt.Errorf("store: %w", err)
	}
	go s.write()
	return s, nil
}

// abandon gives back what a failed Open took.
func (s *Store) abandon() {
	for _, db := range []*sql.DB{s.w, s.r} {
		if db != nil {
			db.Close()
		}
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

// openSQLite takes the file for this process alone. A second process is
// refused rather than made to wait: two conductors on one file would each
// believe the other's lease void.
func (s *Store) openSQLite(path string) error {
	s.dialect = sqlite
	l, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = l
	if err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s is open in another smelt process (lock on %s.lock: %w)", path, path, err)
	}
	// SQLite gives -wal and -shm the permissions of the database itself.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// FULL: what is committed survives a power cut; NORMAL may lose the last
	// commits of a WAL database.
	const pragmas = "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_txlock=immediate"
	name := "file:" + (&url.URL{Path: path}).EscapedPath()
	if s.w, err = sql.Open("sqlite", name+pragmas); err != nil {
		return err
	}
	s.w.SetMaxOpenConns(1)
	if s.r, err = sql.Open("sqlite", name+"?mode=ro&_pragma=busy_timeout(10000)&_pragma=query_only(1)"); err != nil {
		return err
	}
	s.r.SetMaxOpenConns(readers)
	s.r.SetMaxIdleConns(readers)
	return nil
}

func (s *Store) openPostgres(dsn string) error {
	s.dialect = postgres
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return errors.New("the postgres:// address does not parse") // pgx repeats parts of it
	}
	// A server tuned for other work may have these off.
	c.RuntimeParams["synchronous_commit"] = "on"
	c.RuntimeParams["application_name"] = "smelt"
	s.w = stdlib.OpenDB(*c)
	s.w.SetMaxOpenConns(2) // the writer, and the lock of a migration
	ro := c.Copy()
	ro.RuntimeParams["default_transaction_read_only"] = "on"
	s.r = stdlib.OpenDB(*ro)
	s.r.SetMaxOpenConns(readers)
	s.r.SetMaxIdleConns(readers)
	return nil
}

// prepare brings the schema up to date and, on SQLite, voids old leases: the
// file lock says that their owners are gone.
func (s *Store) prepare(ctx context.Context) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if s.dialect == sqlite {
		if _, err := s.w.ExecContext(ctx, `UPDATE leases SET until = 0`); err != nil {
			return fmt.Errorf("void old leases: %w", err)
		}
	}
	return nil
}

func (s *Store) migrate(ctx context.Context) error {
	dir, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return err
	}
	opts := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if s.dialect == postgres { // two controllers may start at once
		l, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return err
		}
		opts = append(opts, goose.WithSessionLocker(l))
	}
	p, err := goose.NewProvider(s.dialect.name, s.w, dir, opts...)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema version: %w", err)
	}
	if have > want {
		return fmt.Errorf("%w: its schema is %d, this smelt knows up to %d; start the newer smelt or restore an older backup", ErrNewer, have, want)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate schema %d to %d: %w", have, want, err)
	}
	return nil
}
