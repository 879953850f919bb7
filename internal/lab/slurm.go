package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// slurmConf is a configless cluster (nodes fetch it from slurmctld) with
// dynamic nodes, the one that the tests of the Slurm driver use. Process
// tracking and tasks need no cgroup, so that a node of the lab runs jobs with
// one CPU and little memory.
const slurmConf = `ClusterName=lab
SlurmctldHost=%[1]s(%[2]s)
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldParameters=enable_configless
MaxNodeCount=64
TreeWidth=65533
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=0
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
StateSaveLocation=%[3]s/state
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=%[3]s/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
PartitionName=ai Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`

// cgroupConf goes to the nodes with it: slurmd 22.05 always loads its cgroup
// plugin, and on cgroup v2 that asks systemd over D-Bus for a scope.
const cgroupConf = `CgroupPlugin=autodetect
IgnoreSystemdOnFailure=yes
`

// startSlurm runs munged and slurmctld, Debian's, inside the lab.
func (l *Lab) startSlurm(ctx context.Context) error {
	dir, err := filepath.Abs(l.opts.SlurmDir())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o755); err != nil {
		return err
	}
	key := make([]byte, 1024)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	keyFile := filepath.Join(dir, "munge.key")
	if err := os.WriteFile(keyFile, key, 0o400); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	host, _, _ = strings.Cut(host, ".")
	conf := filepath.Join(dir, "slurm.conf")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf(slurmConf, host, serverAddr, dir)), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.conf"), []byte(cgroupConf), 0o644); err != nil {
		return err
	}
	if _, err := l.run(nil, "mkdir", "-p", "/run/munge"); err != nil {
		return err
	}
	munged, err := l.start("munged", nil, nil, nil, "munged", "--foreground", "--force",
		"--key-file="+keyFile, "--pid-file=/run/munge/munged.pid", "--seed-file="+filepath.Join(dir, "munged.seed"), "--log-file="+filepath.Join(dir, "munged.log"))
	if err != nil {
		return err
	}
	l.slurm = map[string]string{"SLURM_CONF": conf}
	ctld, err := l.start("slurmctld", l.slurm, nil, nil, "slurmctld", "-D", "-i")
	if err != nil {
		return err
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := l.run(l.slurm, "scontrol", "ping")
		if err == nil && strings.Contains(out, "is UP") {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-munged.done:
			return fmt.Errorf("munged ended: %s", munged.tail())
		case <-ctld.done:
			return fmt.Errorf("slurmctld ended: %s", ctld.tail())
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("slurmctld is not up after a minute: %s\n%s", out, ctld.tail())
		}
	}
}
