package main

import (
	_ "embed"
	"encoding/pem"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/secureboot"
)

func newSecureBoot(o *options) *cobra.Command {
	return group("secureboot", "The site's Secure Boot key, which machines are enrolled with", newSecureBootExport(o))
}

// enrolText says how to enrol machines. It lies beside what is exported.
//
//go:embed secureboot.txt
var enrolText string

func newSecureBootExport(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "export DIR", Short: "Write the site's certificate in every form that firmware takes",
		Long: `Write the site's Secure Boot certificate into a folder, in every form that
firmware takes, with a text that says how to enrol machines. Nothing of it is
secret; the key itself stays in the state folder. A machine that knows the
certificate starts the signed RAM system with Secure Boot on, and nothing that
was changed on the way.`,
		Example: "  smelt secureboot export enrol && cat enrol/README.txt",
		Args:    exactly("DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			site, _, err := o.loadSite(nil)
			if err != nil {
				return err
			}
			key, err := secureBootKey(site.State, site.Name)
			if err != nil {
				return err
			}
			_, ca, err := bootCA(site.State, site.Name)
			if err != nil {
				return err
			}
			return say(c, exportKeys(key, ca, args[0], time.Now()), "The certificate is in %s; %s says how to enrol machines.", args[0], filepath.Join(args[0], "README.txt"))
		},
	}
}

// exportKeys writes the files that enrolText names.
func exportKeys(key secureboot.Key, ca []byte, dir string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{
		"smelt.cer":  key.Certificate(),
		"smelt.pem":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: key.Certificate()}),
		"smelt.esl":  key.List(),
		"README.txt": []byte(enrolText),

		"boot-ca.cer": ca,
		"boot-ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca}),
		"boot-ca.esl": secureboot.List(ca),
	}
	for _, d := range []secureboot.Database{secureboot.DB, secureboot.KEK, secureboot.PK} {
		b, err := key.Variable(d, now)
		if err != nil {
			return err
		}
		files[string(d)+".auth"] = b
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
