package main

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/internal/certificate"
	"smelt/inventory"
)

func newCertificate(o *options) *cobra.Command {
	return group("certificate", "Wipe certificates: what was wiped, how, and how that is known",
		newCertificateList(o), newCertificateShow(o), newCertificateVerify(o), newCertificateKey())
}

func newCertificateList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list NODE", Short: "List the wipe certificates of a node, newest first", Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Certificates(ctx, inventory.NodeID(args[0]))
				if err != nil {
					return err
				}
				l := listing{doc: list, cols: []string{"id", "at"}}
				for _, x := range list.Items {
					l.rows = append(l.rows, []string{x.ID, x.At.Local().Format("2006-01-02 15:04")})
				}
				return o.show(c, l)
			})
		},
	}
}

func newCertificateShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show NODE [ID]", Short: "Print a signed wipe certificate, the newest without an ID; keep it, and verify it anywhere",
		Example: "  smelt certificate show rig-01 >rig-01.wipe.json\n  smelt certificate verify rig-01.wipe.json --key site.pub",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactly("NODE")(c, args)
			}
			return atMost(2)(c, args)
		},
		ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				node := inventory.NodeID(args[0])
				id := ""
				if len(args) > 1 {
					id = args[1]
				} else {
					list, err := cl.Certificates(ctx, node)
					if err != nil {
						return err
					}
					if len(list.Items) == 0 {
						return usageError{fmt.Sprintf("no disk of %s was wiped yet", node), "smelt node show " + args[0]}
					}
					id = list.Items[0].ID
				}
				b, err := cl.Certificate(ctx, node, id)
				if err != nil {
					return err
				}
				// The signed bytes as they are, whatever the format and without a byte
				// more: they are the proof, and the page names their digest.
				_, err = c.OutOrStdout().Write(b)
				return err
			})
		},
	}
}

func newCertificateVerify(o *options) *cobra.Command {
	var keyPath, state, html string
	c := &cobra.Command{
		Use: "verify FILE", Short: "Verify a wipe certificate and show it; exit 3 if it is not genuine",
		Long:    "Verify a wipe certificate offline, with the public key of the site that made it (smelt certificate key), and show what it says. FILE - is standard input.",
		Example: "  smelt certificate verify rig-01.wipe.json --key site.pub\n  smelt certificate show rig-01 | smelt certificate verify - --html rig-01.html",
		Args:    exactly("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := certificateKey(keyPath, state)
			if err != nil {
				return err
			}
			in := c.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return usageError{err.Error(), ""}
				}
				defer f.Close()
				in = f
			}
			b, err := io.ReadAll(io.LimitReader(in, 8<<20))
			if err != nil {
				return err
			}
			x, err := certificate.Open(b, key)
			if err != nil {
				fmt.Fprintf(c.ErrOrStderr(), "smelt: %s: %v (key %s)\n", args[0], err, certificate.KeyID(key))
				return errNegative
			}
			if html != "" {
				if err := writeCertificate(html, x, b, key); err != nil {
					return err
				}
			}
			if o.output == "table" || o.output == "wide" {
				if err := certificate.WriteText(c.OutOrStdout(), x); err != nil {
					return err
				}
				return say(c, nil, "Genuine: signed by key %s", certificate.KeyID(key))
			}
			l := listing{doc: x, cols: []string{"serial", "wwn", "bytes", "model", "level", "nist", "method"}}
			for _, d := range x.Disks {
				l.rows = append(l.rows, []string{d.Disk.Serial, d.Disk.WWN, fmt.Sprint(d.Disk.Size), d.Model, d.Level, d.NIST, d.Method})
			}
			return o.show(c, l)
		},
	}
	c.Flags().StringVar(&keyPath, "key", "", "public key of the site, as smelt certificate key prints it")
	c.Flags().StringVar(&state, "state", "/var/lib/smelt", "state folder of the site, whose key is used without --key")
	c.Flags().StringVar(&html, "html", "", "also write it as one HTML file that prints")
	return c
}

func writeCertificate(path string, x certificate.Certificate, signed []byte, key ed25519.PublicKey) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := certificate.WriteHTML(f, x, signed, certificate.KeyID(key)); err != nil {
		f.Close()
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}

func newCertificateKey() *cobra.Command {
	var state string
	c := &cobra.Command{
		Use: "key", Short: "Print the public key that verifies the certificates of this site", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := certificateKey("", state)
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKIXPublicKey(key)
			if err != nil {
				return err
			}
			if err := pem.Encode(c.OutOrStdout(), &pem.Block{Type: "PUBLIC KEY", Bytes: der}); err != nil {
				return err
			}
			return say(c, nil, "key %s: compare this with the certificate, by another way than the one it came", certificate.KeyID(key))
		},
	}
	c.Flags().StringVar(&state, "state", "/var/lib/smelt", "state folder of the site")
	return c
}

// certificateKey reads a public key, or takes that of the site. It makes none:
// a new key would verify nothing.
func certificateKey(path, state string) (ed25519.PublicKey, error) {
	if path == "" {
		k, err := keyFile(siteKeyPath(state), func() (crypto.PrivateKey, error) { return nil, errors.New("there is no key") })
		if err != nil {
			return nil, fmt.Errorf("the site's key: %w; give --state, or the public key with --key", err)
		}
		key, ok := k.(ed25519.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%s: want an ed25519 key, found %T", siteKeyPath(state), k)
		}
		return key.Public().(ed25519.PublicKey), nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{err.Error(), ""}
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, usageError{path + " holds no PEM key", "smelt certificate key, on the site's server"}
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, usageError{fmt.Sprintf("%s: %v", path, err), ""}
	}
	key, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, usageError{fmt.Sprintf("%s: want an ed25519 key, found %T", path, k), ""}
	}
	return key, nil
}
