package swarm

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"smelt/images/disk"
)

// nginxConf is what docs/decisions/0016-swarm.md shows: the URLs are immutable,
// so any cache that takes ranges may stand in front of the origin.
const nginxConf = `
daemon off; master_process off; pid %[1]s/pid; error_log stderr warn;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/temp; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  proxy_cache_path %[1]s/cache keys_zone=images:8m max_size=50g inactive=30d use_temp_path=off;
  server {
    listen %[2]s;
    location / {
      slice 1m;
      proxy_cache images; proxy_cache_key $uri$slice_range; proxy_cache_lock on; proxy_cache_lock_timeout 60s;
      proxy_set_header Range $slice_range; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass %[3]s;
    }
  }
}
`

// TestNginxInFront: nodes write through nginx, which fetches about one image.
func TestNginxInFront(t *testing.T) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("needs nginx")
		}
		t.Skip("needs nginx")
	}
	s := newSite(t, 8)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, addr, s.origin.URL), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(nginx, "-p", dir, "-c", conf)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Signal(syscall.SIGTERM); c.Wait() }()
	for range 200 {
		if k, err := net.Dial("tcp", addr); err == nil {
			k.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			path := filepath.Join(dir, fmt.Sprint("disk", i))
			if err := os.WriteFile(path, make([]byte, len(s.raw)), 0o600); err != nil {
				t.Error(err)
			}
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			if _, err := disk.Write(t.Context(), path, s.m, disk.HTTP(client, "http://"+addr+"/blob/"+s.m.Blob.String()), disk.Options{}); err != nil {
				t.Error(err)
			}
			s.same(t, path)
		})
	}
	wg.Wait()
	x := float64(s.sent.Load()) / float64(s.m.BlobLen)
	t.Logf("the origin sent %.2f images for 3 nodes behind nginx", x)
	if x > 1.6 {
		t.Errorf("the origin sent the image %.2f times to nginx", x)
	}
}
