package build

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// logFile keeps what every tool of a build said, with the time, for whoever
// asks later why an image is what it is.
type logFile struct {
	path string
	mu   sync.Mutex
	f    *os.File
	part []byte
}

// keepLogs is how many logs of one image stay.
const keepLogs = 20

func openLog(dir, title string) (*logFile, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	old, err := filepath.Glob(filepath.Join(dir, title+"-*.log"))
	if err != nil {
		return nil, err
	}
	slices.Sort(old) // by time
	for _, f := range old[:max(0, len(old)-keepLogs+1)] {
		os.Remove(f)
	}
	f, err := os.CreateTemp(dir, title+"-"+time.Now().UTC().Format("20060102T150405Z")+"-*.log")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		return nil, err
	}
	return &logFile{path: f.Name(), f: f}, nil
}

// Write logs whole lines. A log that cannot be written fails no build.
func (l *logFile) Write(b []byte) (int, error) {
	if l == nil {
		return len(b), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UTC().Format("15:04:05 ")
	for _, c := range b {
		if c == '\n' || c == '\r' {
			if len(l.part) > 0 {
				io.WriteString(l.f, now+string(l.part)+"\n")
			}
			l.part = l.part[:0]
			continue
		}
		l.part = append(l.part, c)
	}
	return len(b), nil
}

func (l *logFile) close(err error) {
	if err != nil {
		fmt.Fprintf(l, "FAILED: %v\n", err)
	}
	fmt.Fprintln(l)
	l.f.Close()
}
