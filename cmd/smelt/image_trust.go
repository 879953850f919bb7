package main

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"smelt/images"
	"smelt/images/release"
	"smelt/images/remote"
	"smelt/internal/api"
)

// publisher are the flags of who releases images: a folder without secrets,
// which may travel to where the keys are.
type publisher struct {
	state      *string
	dir        string
	key        string
	passphrase string // file
}

func (p *publisher) flags(c *cobra.Command, key string) *cobra.Command {
	c.Flags().StringVar(&p.dir, "folder", "", "release folder (default: STATE/release)")
	if key != "" {
		c.Flags().StringVar(&p.key, "key", "", key)
		c.Flags().StringVar(&p.passphrase, "passphrase-file", "", "file with the key's passphrase; asked for on a terminal without it")
	}
	return c
}

func (p *publisher) folder() string { return cmp.Or(p.dir, filepath.Join(*p.state, "release")) }

func (p *publisher) open() (*release.Repository, error) { return release.OpenRepository(p.folder()) }

// readKey reads the key that --key names.
func (p *publisher) readKey(c *cobra.Command) (ed25519.PrivateKey, error) {
	if p.key == "" {
		return nil, usageError{c.CommandPath() + " needs the file of a key", "give --key FILE; smelt image trust key makes one"}
	}
	return release.ReadKey(p.key, func() (string, error) { return readPassphrase(c, p.passphrase, "Passphrase of "+p.key+": ") })
}

// readPassphrase reads a passphrase from a file or from the terminal.
func readPassphrase(c *cobra.Command, file, prompt string) (string, error) {
	if file != "" {
		b, err := os.ReadFile(file)
		return strings.TrimRight(string(b), "\r\n"), err
	}
	in, ok := c.InOrStdin().(*os.File)
	if !ok || !terminal(in) {
		return "", usageError{"there is no terminal to ask for the passphrase", "give --passphrase-file"}
	}
	fmt.Fprint(c.ErrOrStderr(), prompt)
	b, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(c.ErrOrStderr())
	return string(b), err
}

func newImageTrust(o *options, state *string) *cobra.Command {
	c := group("trust", "Keys and roles of who releases images",
		newTrustKey(), newTrustInit(state), newTrustShow(o, state), newTrustSign(state), newTrustKeys(state), newTrustRenew(state), newTrustFetch(o, state))
	c.Long = `Keys and roles of who releases images. A release folder holds what is published
and what waits for signatures, in the format of The Update Framework; it holds
no key, so copy it to where the keys are and back.

  root      whose keys count for what
  release   which images exist
  canary    which image a name stands for on the sites that try it first
  stable    which image a name stands for everywhere else
  online    that all of this is the newest; where images are published from`
	return c
}

func newTrustKey() *cobra.Command {
	var plain bool
	var file string
	c := &cobra.Command{
		Use: "key FILE", Short: "Make a signing key, encrypted with a passphrase, and FILE.pub",
		Args: exactly("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			pass := ""
			if !plain {
				var err error
				if pass, err = readPassphrase(c, file, "New passphrase: "); err != nil {
					return err
				}
				if pass == "" {
					return usageError{"the passphrase is empty", "give one, or --plain for a key that a machine uses by itself"}
				}
				if file == "" {
					again, err := readPassphrase(c, "", "The same again: ")
					if err != nil {
						return err
					}
					if again != pass {
						return usageError{"the passphrases differ: nothing was written", ""}
					}
				}
			}
			pub, err := release.NewKey(args[0], pass)
			if errors.Is(err, os.ErrExist) {
				return usageError{args[0] + " exists: a key is never replaced", "choose another file"}
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), images.KeyID(pub))
			return nil
		},
	}
	c.Flags().BoolVar(&plain, "plain", false, "do not encrypt it: for the online key, which a machine uses by itself")
	c.Flags().StringVar(&file, "passphrase-file", "", "file with the passphrase; asked for on a terminal without it")
	return c
}

func newTrustInit(state *string) *cobra.Command {
	p := publisher{state: state}
	files, thresholds := map[release.Role]*[]string{}, map[release.Role]*int{}
	c := p.flags(&cobra.Command{
		Use: "init", Short: "Begin a release folder with the public keys of each role",
		Example: "  smelt image trust init --root anna.pub,ben.pub --root-threshold 2 --release anna.pub,ben.pub --canary ci.pub --stable ben.pub --online ci.pub",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			keys := map[release.Role]release.Keys{}
			for _, role := range release.Roles {
				if len(*files[role]) == 0 {
					return usageError{fmt.Sprintf("role %s has no key", role), fmt.Sprintf("give --%s FILE.pub", role)}
				}
				k := release.Keys{Threshold: *thresholds[role]}
				for _, f := range *files[role] {
					pub, err := release.ReadPublicKey(f)
					if err != nil {
						return usageError{err.Error(), ""}
					}
					k.Public = append(k.Public, pub)
				}
				keys[role] = k
			}
			if _, err := release.NewRepository(p.folder(), keys); err != nil {
				return usageError{err.Error(), ""}
			}
			return say(c, nil, "%s waits for the signatures of all roles: smelt image trust sign --key FILE, with the key of each.", p.folder())
		},
	}, "")
	for _, role := range release.Roles {
		files[role], thresholds[role] = new([]string), new(int)
		c.Flags().StringSliceVar(files[role], string(role), nil, "public keys of "+string(role))
		c.Flags().IntVar(thresholds[role], string(role)+"-threshold", 1, "how many of them must sign")
	}
	return c
}

func newTrustShow(o *options, state *string) *cobra.Command {
	p := publisher{state: state}
	return p.flags(&cobra.Command{
		Use: "show", Short: "Show roles, keys, what is published, and what waits for signatures; exit 3 when something does",
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := p.open()
			if err != nil {
				return err
			}
			type row struct {
				Role      release.Role `json:"role"`
				Version   int64        `json:"version"`
				Expires   *time.Time   `json:"expires,omitempty"`
				Threshold int          `json:"threshold"`
				Keys      []string     `json:"keys"`
				Staged    int64        `json:"staged,omitempty"` // version
				Have      int          `json:"have,omitempty"`   // signatures of what is staged
				Need      int          `json:"need,omitempty"`
			}
			staged, err := r.Staged()
			if err != nil {
				return err
			}
			waits := false
			l := listing{cols: []string{"role", "published", "expires", "needs", "keys", "staged"}}
			var docs []row
			for _, role := range release.Roles {
				keys, err := r.Keys(role)
				if err != nil {
					return err
				}
				st, err := r.Published(role)
				if err != nil {
					return err
				}
				d := row{Role: role, Version: st.Version, Threshold: keys.Threshold}
				for _, k := range keys.Keys {
					d.Keys = append(d.Keys, images.KeyID(k))
				}
				expires, waiting := "-", "-"
				if !st.Expires.IsZero() {
					d.Expires, expires = &st.Expires, st.Expires.Format(time.DateOnly)
				}
				for _, s := range staged {
					if s.Role == role {
						d.Staged, d.Have, d.Need = s.Version, s.Have, s.Need
						waiting = fmt.Sprintf("version %d, %d of %d signed", s.Version, s.Have, s.Need)
						waits = waits || !s.Done
					}
				}
				docs = append(docs, d)
				l.rows = append(l.rows, []string{string(role), strconv.FormatInt(st.Version, 10), expires,
					fmt.Sprintf("%d of %d", keys.Threshold, len(keys.Keys)), strings.Join(d.Keys, " "), waiting})
			}
			l.doc = map[string]any{"apiVersion": api.Version, "kind": "ReleaseTrust", "items": docs}
			if err := o.show(c, l); err != nil {
				return err
			}
			if waits {
				return errNegative
			}
			return nil
		},
	}, "")
}

func newTrustSign(state *string) *cobra.Command {
	p := publisher{state: state}
	return p.flags(&cobra.Command{
		Use: "sign", Short: "Sign what is staged for every role that a key has", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := p.open()
			if err != nil {
				return err
			}
			key, err := p.readKey(c)
			if err != nil {
				return err
			}
			signed, err := r.SignAll(key)
			if err != nil {
				return err
			}
			if len(signed) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "Nothing is staged for the roles of this key.")
			}
			for _, role := range signed {
				fmt.Fprintln(c.OutOrStdout(), role)
			}
			return sayWaiting(c, r)
		},
	}, "file of the signing key")
}

// sayWaiting says what still wants signatures.
func sayWaiting(c *cobra.Command, r *release.Repository) error {
	staged, err := r.Staged()
	if err != nil {
		return err
	}
	for _, s := range staged {
		if s.Done {
			fmt.Fprintf(c.ErrOrStderr(), "%s: signed by enough (%d); next: smelt image publish REMOTE\n", s.Role, s.Need)
		} else {
			fmt.Fprintf(c.ErrOrStderr(), "%s: %d of %d signatures; next: smelt image trust sign --key FILE, with another key of it\n", s.Role, s.Have, s.Need)
		}
	}
	return nil
}

func newTrustKeys(state *string) *cobra.Command {
	p := publisher{state: state}
	var add, remove []string
	var threshold int
	c := p.flags(&cobra.Command{
		Use: "keys ROLE", Short: "Change the keys of a role: for a person who leaves, or a key that was lost",
		Long: `Change the keys of a role. The change is staged: the keys of root sign it (for
canary and stable those of release), and the new keys sign what the role says.
After a key of release was removed, sign the images again that it signed:
smelt image sign --all. Sites learn of it with their next pull, and put the new
keys into what their nodes boot.`,
		Example: "  smelt image trust keys release --add carla.pub --remove 1f2e3d4c",
		Args:    exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			role, err := release.ParseRole(args[0])
			if err != nil {
				return usageError{err.Error(), ""}
			}
			if len(add) == 0 && len(remove) == 0 && threshold == 0 {
				return usageError{"nothing to change", "give --add, --remove or --threshold"}
			}
			r, err := p.open()
			if err != nil {
				return err
			}
			var keys []ed25519.PublicKey
			for _, f := range add {
				k, err := release.ReadPublicKey(f)
				if err != nil {
					return usageError{err.Error(), ""}
				}
				keys = append(keys, k)
			}
			if err := r.SetKeys(role, keys, remove, threshold); err != nil {
				return usageError{err.Error(), ""}
			}
			return sayWaiting(c, r)
		},
	}, "")
	c.Flags().StringSliceVar(&add, "add", nil, "files of public keys that are added")
	c.Flags().StringSliceVar(&remove, "remove", nil, "keys that leave: the beginning of what trust show calls them")
	c.Flags().IntVar(&threshold, "threshold", 0, "how many must sign from now on")
	return c
}

func newTrustRenew(state *string) *cobra.Command {
	p := publisher{state: state}
	return p.flags(&cobra.Command{
		Use: "renew ROLE", Short: "Stage a role unchanged, before what it says expires", Args: exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			role, err := release.ParseRole(args[0])
			if err != nil {
				return usageError{err.Error(), ""}
			}
			if role == release.Online {
				return usageError{"online is renewed by publishing", "smelt image publish REMOTE"}
			}
			r, err := p.open()
			if err != nil {
				return err
			}
			if err := r.Renew(role); err != nil {
				return err
			}
			return sayWaiting(c, r)
		},
	}, "")
}

func newTrustFetch(o *options, state *string) *cobra.Command {
	p := publisher{state: state}
	var root string
	c := p.flags(&cobra.Command{
		Use: "fetch REMOTE", Short: "Begin a release folder from what is published, or bring it up to date", Args: exactly("REMOTE"),
		RunE: func(c *cobra.Command, args []string) error {
			if root == "" {
				return usageError{"nothing says whom to trust", "give --root FILE, the root that sites begin with"}
			}
			b, err := os.ReadFile(root)
			if err != nil {
				return usageError{err.Error(), ""}
			}
			from, err := remote.Open(args[0], remoteCredentials())
			if err != nil {
				return usageError{err.Error(), ""}
			}
			return say(c, release.Fetch(c.Context(), p.folder(), b, from), "%s holds what %s has.", p.folder(), from)
		},
	}, "")
	c.Flags().StringVar(&root, "root", "", "root metadata to begin with (1.root.json)")
	return c
}

// remoteCredentials are those of who publishes. A pipeline has them in its
// environment; the names of S3's are everybody's.
func remoteCredentials() remote.Credentials {
	return remote.Credentials{
		User:     env("SMELT_REMOTE_USER", os.Getenv("AWS_ACCESS_KEY_ID")),
		Password: env("SMELT_REMOTE_PASSWORD", os.Getenv("AWS_SECRET_ACCESS_KEY")),
	}
}
