package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// listsAge is how long fetched package lists are believed.
const listsAge = 6 * time.Hour

// apt is an apt of our own in dir: neither the host's release nor its
// installed packages have a say in what goes into an image.
type apt struct {
	dir     string
	entries []string  // the source of each line of its sources.list
	log     io.Writer // may be nil
}

// openApt writes the configuration of the apt for some sources, in cache. What
// the host says about the way to the mirrors (proxies, certificates, clocks)
// holds here too; its hooks do not.
func openApt(ctx context.Context, cache string, sources []Source) (apt, error) {
	dir := filepath.Join(cache, "apt-"+contentKey(sources)[:12])
	a := apt{dir: dir}
	for _, d := range []string{"lists/partial", "archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return a, err
		}
	}
	acquire, err := hostAcquire(ctx)
	if err != nil {
		return a, err
	}
	list, prefs := "", ""
	for _, s := range sources {
		for _, l := range s.lines(s.Key) {
			list += l + "\n"
			a.entries = append(a.entries, s.Name)
		}
		prefs += s.preferences()
	}
	conf := fmt.Sprintf(`Dir "/";
Dir::State %[1]q;
Dir::State::lists "lists";
Dir::State::status "status";
Dir::Cache %[1]q;
Dir::Cache::archives "archives";
Dir::Etc %[2]q;
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
%[3]s`, dir, filepath.Join(dir, "etc"), acquire)
	for name, s := range map[string]string{
		"apt.conf": conf, "status": "", "etc/sources.list": list, "etc/preferences": prefs,
	} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			return a, err
		}
		// The host's proxy may be named with a password.
		if err := os.Chmod(p, 0o600); err != nil {
			return a, err
		}
	}
	return a, nil
}

// hostAcquire returns the host's Acquire settings as apt configuration.
func hostAcquire(ctx context.Context) (string, error) {
	out, err := command{name: "apt-config", args: []string{"dump", "--no-empty", "--format", `%f "%v";%n`, "Acquire"}}.run(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for l := range strings.Lines(out) {
		// Index targets are what the host's desktop wants to know of packages.
		if strings.HasPrefix(l, "Acquire::") && !strings.HasPrefix(l, "Acquire::IndexTargets") {
			b.WriteString(l)
		}
	}
	b.WriteString("Acquire::Retries \"3\";\nAcquire::Languages \"none\";\n")
	return b.String(), nil
}

func (a apt) command(name string, args ...string) command {
	return command{name: name, args: args, log: a.log, env: []string{"APT_CONFIG=" + filepath.Join(a.dir, "apt.conf")}}
}

// update fetches the package lists when they are old.
func (a apt) update(ctx context.Context) error {
	stamp := filepath.Join(a.dir, "updated")
	if i, err := os.Stat(stamp); err == nil && time.Since(i.ModTime()) < listsAge {
		return nil
	}
	_, err := a.refresh(ctx)
	return err
}

// refresh fetches the package lists, and returns what apt said.
func (a apt) refresh(ctx context.Context) (string, error) {
	out, err := a.command("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update").run(ctx)
	if err != nil {
		return out, fmt.Errorf("package lists: %w", err)
	}
	return out, os.WriteFile(filepath.Join(a.dir, "updated"), nil, 0o644)
}

// depends returns the packages that pkg depends on.
func (a apt) depends(ctx context.Context, pkg string) ([]string, error) {
	out, err := a.command("apt-cache", "show", "--no-all-versions", pkg).run(ctx)
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(l, "Depends:"); ok {
			var names []string
			for d := range strings.SplitSeq(v, ",") {
				if f := strings.Fields(d); len(f) > 0 {
					names = append(names, f[0])
				}
			}
			return names, nil
		}
	}
	return nil, nil
}

// download fetches the packages' files into dir, checked against the signed lists.
func (a apt) download(ctx context.Context, dir string, pkgs ...string) ([]string, error) {
	c := a.command("apt-get", append([]string{"-q", "download"}, pkgs...)...)
	c.dir = dir
	if _, err := c.run(ctx); err != nil {
		return nil, err
	}
	var files []string
	for _, p := range pkgs {
		m, err := filepath.Glob(filepath.Join(dir, p+"_*.deb"))
		if err != nil || len(m) != 1 {
			return nil, fmt.Errorf("apt-get download %s left %d files", p, len(m))
		}
		files = append(files, m[0])
	}
	return files, nil
}
