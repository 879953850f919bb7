package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// aptHelper is apt's own downloader: it goes the way that the host's apt goes,
// through the same proxies.
const aptHelper = "/usr/lib/apt/apt-helper"

// ErrGone is wrapped where a repository no longer has a locked package.
var ErrGone = errors.New("newer ones took their place")

// debs returns the files of locked packages by name, fetching what the cache
// lacks. Each is verified, wherever it comes from.
func (b *builder) debs(ctx context.Context, pkgs []Locked) (map[string]string, error) {
	dir := filepath.Join(b.Cache, "debs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := flock(ctx, filepath.Join(b.Cache, "debs.lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	files := map[string]string{}
	var missing []Locked
	for _, p := range pkgs {
		f := filepath.Join(dir, p.SHA256.String()+".deb")
		files[p.Name] = f
		if d, err := fileDigest(f); err == nil && d == p.SHA256 {
			now := time.Now()
			if err := os.Chtimes(f, now, now); err != nil { // keeps it from being pruned
				return nil, err
			}
			continue
		}
		missing = append(missing, p)
	}
	if len(missing) == 0 {
		return files, nil
	}
	var size int64
	for _, p := range missing {
		size += p.Size
	}
	if err := needSpace(b.Cache, size+64<<20, "fetching the packages"); err != nil {
		return nil, err
	}
	missing, said, err := b.fetch(ctx, dir, missing, size, b.poolURL)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		// Debian keeps what it removed from its mirrors.
		if missing, _, err = b.fetch(ctx, dir, missing, size, b.snapshotURL); err != nil {
			return nil, err
		}
	}
	if len(missing) > 0 {
		var names []string
		for _, p := range missing {
			names = append(names, p.Name+" "+p.Version+" ("+p.Source+")")
		}
		return nil, fmt.Errorf("%d locked packages cannot be had: %s; %s: %w: %w", len(missing), strings.Join(names[:min(5, len(names))], ", "), said, ErrGone, ErrStale)
	}
	return files, pruneDebs(dir)
}

// fetch downloads packages into dir, and returns those that it did not get,
// with what apt said of the first.
func (b *builder) fetch(ctx context.Context, dir string, pkgs []Locked, total int64, url func(Locked) string) (missing []Locked, why string, err error) {
	tmp, err := os.MkdirTemp(b.Cache, "debs-*")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(tmp)
	acquire, err := hostAcquire(ctx)
	if err != nil {
		return nil, "", err
	}
	conf := filepath.Join(tmp, "apt.conf")
	if err := os.WriteFile(conf, []byte(acquire+"APT::Sandbox::User \"root\";\n"), 0o644); err != nil {
		return nil, "", err
	}
	var done int64
	for part := range slices.Chunk(pkgs, 100) {
		args := []string{"-q", "download-file"}
		byURL := map[string]Locked{}
		for _, p := range part {
			u := url(p)
			file := filepath.Join(tmp, p.SHA256.String())
			if from, ok := strings.CutPrefix(u, "file:"); ok {
				if err := copyFile(from, file); err != nil && why == "" {
					why = err.Error()
				}
			} else if u != "" {
				args = append(args, u, file, "SHA256:"+p.SHA256.String())
				byURL[u] = p
			}
		}
		if len(args) > 2 {
			c := command{name: aptHelper, args: args, env: []string{"APT_CONFIG=" + conf}, log: b.log, line: func(l string) {
				if f := strings.Fields(l); len(f) > 1 && strings.HasPrefix(f[0], "Get:") {
					p := byURL[f[1]]
					b.tell("fetch", min(1, float64(done)/float64(total)), p.Name+" "+p.Version)
					done += p.Size
				}
			}}
			if out, err := c.run(ctx); err != nil && ctx.Err() != nil {
				return nil, "", err
			} else if m := failed.FindStringSubmatch(out); m != nil && why == "" {
				why = strings.TrimSpace(m[1])
			}
		}
		for _, p := range part {
			file := filepath.Join(tmp, p.SHA256.String())
			d, err := fileDigest(file)
			if err != nil || d != p.SHA256 {
				missing = append(missing, p)
				continue
			}
			if err := os.Chmod(file, 0o644); err != nil {
				return nil, "", err
			}
			if err := os.Rename(file, filepath.Join(dir, p.SHA256.String()+".deb")); err != nil {
				return nil, "", err
			}
		}
	}
	return missing, why, nil
}

var failed = regexp.MustCompile(`(?m)^E: Failed to fetch (.*)$`)

// source finds the source of a locked package.
func (b *builder) source(p Locked) Source {
	for _, all := range [][]Source{b.Recipe.Sources, toolSources} {
		if i := slices.IndexFunc(all, func(s Source) bool { return s.Name == p.Source }); i >= 0 {
			s := all[i]
			if m := b.Mirrors[s.Name]; m != "" {
				s.URL = strings.TrimSuffix(m, "/")
			}
			return s
		}
	}
	return Source{}
}

func (b *builder) poolURL(p Locked) string {
	s := b.source(p)
	if s.Dir != "" {
		return "file:" + filepath.Join(s.Dir, p.Path)
	}
	if s.URL == "" {
		return ""
	}
	return s.URL + "/" + p.Path
}

// snapshotURL is where Debian keeps everything it ever had, by date
// (snapshot.debian.org). It imports a few times a day: the day after has what
// the lock's date had.
func (b *builder) snapshotURL(p Locked) string {
	s := b.source(p)
	if s.Snapshot == "" {
		return ""
	}
	return s.Snapshot + "/" + b.Lock.Date.Add(24*time.Hour).UTC().Format("20060102T150405Z") + "/" + p.Path
}

// keepDebs is how long a package that no build used stays in the cache.
const keepDebs = 60 * 24 * time.Hour

func pruneDebs(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if i, err := os.Stat(f); err == nil && time.Since(i.ModTime()) > keepDebs {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}
