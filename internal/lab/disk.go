package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// diskSize of the lab's machines. Files are sparse.
const diskSize = 4 << 30

// hiveFiles are what HiveOS keeps on a rig. The values are made up; the
// passwords are there to show that inspection redacts them.
var hiveFiles = map[string]string{
	"hive-config/rig.conf": `# HiveOS rig config
HIVE_HOST_URL="http://api.hiveos.farm"
API_HOST_URLs="http://api.hiveos.farm"
RIG_ID=%[2]d
RIG_PASSWD="correct-horse-%[1]s"
WORKER_NAME="%[1]s"
FARM_ID=99
FARM_HASH=0123456789abcdef0123456789abcdef01234567
MINER=t-rex
MINER2=
TIMEZONE="Europe/Madrid"
WD_ENABLED=1
WD_MINER=3
WD_REBOOT=5
`,
	"hive-config/nvidia-oc.conf": `CLOCK="1150"
MEM="2200"
FAN="70"
PLIMIT="230"
OHGODAPILL_ENABLED=0
RUNNING_DELAY=60
`,
	"hive-config/wallet.conf": `#!/usr/bin/env bash
CUSTOM_MINER=t-rex
TREX_URL="stratum2+tcp://0x00000000000000000000000000000000000c0ffe.%[1]s@eu1.pool.example:4444"
TREX_TEMPLATE="0x00000000000000000000000000000000000c0ffe.%[1]s"
TREX_PASS="x-%[1]s"
`,
	"hive/bin/hello": "#!/usr/bin/env bash\n# reports this rig to the farm\n",
	"etc/hostname":   "%[1]s\n",
}

// miningDisk makes a disk that carries a mining OS: an MBR partition table, as
// HiveOS images have, and an ext4 with its configuration.
func miningDisk(path, worker string, rig int) error {
	root, err := os.MkdirTemp("", "smelt-hive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	for name, text := range hiveFiles {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if strings.Contains(text, "%[") {
			if strings.Contains(text, "%[2]d") {
				text = fmt.Sprintf(text, worker, rig)
			} else {
				text = fmt.Sprintf(text, worker)
			}
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := blankDisk(path, diskSize); err != nil {
		return err
	}
	sfdisk := exec.Command("sfdisk", "--quiet", path)
	sfdisk.Stdin = strings.NewReader("label: dos\nstart=2048, size=2097152, type=83, bootable\n")
	if out, err := sfdisk.CombinedOutput(); err != nil {
		return fmt.Errorf("partition %s: %w: %s", path, err, out)
	}
	mke2fs := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-L", "hiveos", "-d", root,
		"-E", "offset=1048576,nodiscard", path, "1048576k")
	if out, err := mke2fs.CombinedOutput(); err != nil {
		return fmt.Errorf("make the mining filesystem on %s: %w: %s", path, err, out)
	}
	return nil
}

// blankDisk makes an empty sparse disk.
func blankDisk(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
