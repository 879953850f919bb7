package inspect

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"smelt/inventory"
)

func TestRedact(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`RIG_PASSWD="hunter2"`, `RIG_PASSWD="REDACTED"`},
		{`RIG_PASSWD=12345678`, `RIG_PASSWD="REDACTED"`}, // a password of digits, too
		{`FARM_HASH=deadbeef`, `FARM_HASH="REDACTED"`},
		{`WALLET='0x52908400098527886E0F7030069857D2E4169EE7'`, `WALLET="REDACTED"`},
		{`EWAL=1111`, `EWAL="REDACTED"`},
		{`API_TOKEN=1`, `API_TOKEN="REDACTED"`},
		{`MY_API_KEY=1`, `MY_API_KEY="REDACTED"`},
		{`TELEGRAM_CHAT=123456`, `TELEGRAM_CHAT="REDACTED"`},
		{`HIVE_HOST_URL="http://user:pw@api.hiveos.farm"`, `HIVE_HOST_URL="REDACTED"`},
		{`CUSTOM='{"pools":[{"pass":"x"}]}'`, `CUSTOM="REDACTED"`},
		{"MULTI='line one\nPASS=secret\nend'", `MULTI="REDACTED"`},
		{`SOMETHING=0x52908400098527886E0F7030069857D2E4169EE7`, `SOMETHING="REDACTED"`},
		{`WORKER_NAME="rig-north-17"`, `WORKER_NAME="rig-north-17"`},
		{`WORKER_NAME="x; rm -rf /"`, `WORKER_NAME="REDACTED"`},
		{`RIG_ID=123456`, `RIG_ID="123456"`},
		{`CLOCK="-200 -200 0"`, `CLOCK="-200 -200 0"`},
		{`FAN="70,auto,80"`, `FAN="70,auto,80"`},
		{`PLIMIT="220" # watts, ask bob@example.com`, `PLIMIT="220"`},
		{`EMPTY=`, `EMPTY=""`},
		{`# wallet 0x52908400098527886E0F7030069857D2E4169EE7`, ``},
		{`just words`, ``},
	} {
		if got := strings.TrimSuffix(Redact(tc.in), "\n"); got != tc.want {
			t.Errorf("Redact(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// Whatever a file holds: what is kept is made of harmless characters, and no
// value of a secret key survives.
func FuzzRedact(f *testing.F) {
	f.Add("RIG_PASSWD=\"hunter2\"\nCLOCK='1 2'\nA='x\ny'")
	f.Add("export WORKER_NAME=rig\r\n=\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := Redact(s)
		if !utf8.ValidString(got) && utf8.ValidString(s) {
			t.Errorf("%q is not text", got)
		}
		for l := range strings.Lines(got) {
			k, v, ok := strings.Cut(strings.TrimSuffix(l, "\n"), "=")
			if !ok || len(v) < 2 {
				t.Fatalf("line %q", l)
			}
			v = v[1 : len(v)-1]
			if v != inventory.Redacted && (secretKey.MatchString(k) || len(v) > 2048 || strings.ContainsAny(v, "\"'`$\\@\n")) {
				t.Errorf("%q was kept", l)
			}
		}
	})
}

// On some releases the folder is a FAT partition of its own. The kernel that
// runs tests may have no FAT: what is mounted is only read here.
func TestSalvageFAT(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command("sh", "-ec", "truncate -s 8M img; mkfs.vfat img >/dev/null; mkdir root; printf 'RIG_ID=7\\nWORKER_NAME=w1\\n' >root/rig.conf")
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if kind, _ := fileSystem(filepath.Join(dir, "img")); kind != "vfat" {
		t.Errorf("kind = %q", kind)
	}
	root, err := os.OpenRoot(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got, err := salvage(root); err != nil || got == nil || got.RigID != "7" || got.WorkerName != "w1" {
		t.Errorf("salvage = %+v, %v", got, err)
	}
	// Some other program's rig.conf is not HiveOS.
	if err := os.WriteFile(filepath.Join(dir, "root/rig.conf"), []byte("[rig]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := salvage(root); err != nil || got != nil {
		t.Errorf("salvage = %+v, %v", got, err)
	}
}

// Of where a rig mined only the pools' hosts are kept: a wallet hides in many
// places of an address.
func TestPools(t *testing.T) {
	const wallet = "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"
	for _, tt := range []struct {
		text string
		want string
	}{
		{`TREX_URL="stratum2+tcp://ETH-eu.Pool.example:4444"`, "eth-eu.pool.example:4444"},
		{`CUSTOM_URL="stratum+ssl://` + wallet + `.rig7:x@eu1.pool.example:3333/rig7"`, "eu1.pool.example:3333"},
		{"A='tcp://a.example:1,tcp://b.example'\nB=tcp://a.example:1", "a.example:1 b.example"},
		{"URL=stratum+tcp://" + wallet + ".pool.example:3333", ""},
		{"URL=stratum+tcp://pool.example:3333" + wallet, ""},
		{"URL=stratum+tcp://0xc0ffee", ""},
		{"TEMPLATE=" + wallet + ".%WORKER_NAME%", ""},
		{"URL=stratum+tcp://pool.example#" + wallet, ""},
	} {
		if got := strings.Join(Pools(tt.text), " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.text, got, tt.want)
		}
	}
}

func FuzzPools(f *testing.F) {
	f.Add("stratum+tcp://w:x@pool.example:3333/w")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range Pools(text) {
			for _, label := range strings.Split(p, ".") {
				if host, _, _ := strings.Cut(label, ":"); len(host) > 24 || strings.ContainsAny(p, "@/\"' ") {
					t.Errorf("%q of %q", p, text)
				}
			}
		}
	})
}

// A real ext4, mounted through a loop device: the files are found, nothing on
// the disk changes, and links out of it lead nowhere.
func TestSalvageDevice(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "needs root to mount")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("CLOCK=\"1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rig := "RIG_ID=123456\nRIG_PASSWD=\"hunter2\"\nWORKER_NAME=\"rig-north-17\"\n"
	for _, tc := range []struct {
		name, make string
		found      bool
		files      int
	}{
		{"ext4", "mkdir -p tree/hive-config; printf '" + rig + "' > tree/hive-config/rig.conf; echo 'CLOCK=\"-200\"' > tree/hive-config/nvidia-oc.conf; truncate -s 8M img; mke2fs -q -t ext4 -d tree img", true, 2},
		{"link out", "mkdir -p tree/hive-config; ln -s " + secret + " tree/hive-config/rig.conf; truncate -s 8M img; mke2fs -q -t ext4 -d tree img", false, 0},
		{"fifo", "mkdir -p tree/hive-config; mkfifo tree/hive-config/rig.conf; truncate -s 8M img; mke2fs -q -t ext4 -d tree img", false, 0},
		{"nothing", "mkdir tree; truncate -s 8M img; mke2fs -q -t ext4 -d tree img", false, 0},
		{"no file system", "truncate -s 8M img", false, 0},
		{"damaged", "mkdir tree; truncate -s 8M img; mke2fs -q -t ext4 -d tree img; dd if=/dev/urandom of=img bs=1 seek=1100 count=300 conv=notrunc status=none", false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			c := exec.Command("sh", "-ec", tc.make)
			c.Dir = dir
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			img := filepath.Join(dir, "img")
			before := sum(t, img)
			out, err := exec.Command("losetup", "--find", "--show", "--read-only", img).Output()
			if err != nil {
				skip(t, fmt.Sprintf("needs a loop device: %v", err))
			}
			loop := strings.TrimSpace(string(out))
			defer func() {
				if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}()
			got, err := SalvageDevice(loop)
			if (got != nil) != tc.found {
				t.Fatalf("salvage = %+v, %v", got, err)
			}
			if got != nil && (got.WorkerName != "rig-north-17" || got.RigID != "123456" || len(got.Files) != tc.files || strings.Contains(fmt.Sprint(got), "hunter2")) {
				t.Errorf("salvage = %+v", got)
			}
			if sum(t, img) != before {
				t.Error("the disk changed")
			}
		})
	}
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
