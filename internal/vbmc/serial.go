package vbmc

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// A serialPort is the serial port of a Machine as those who attach to it see
// it. QEMU is always connected to it, or a guest that opens its port would
// wait for a carrier. What is printed while nobody is attached is in the file
// that QEMU logs it to.
type serialPort struct {
	ln net.Listener

	mu   sync.Mutex
	qemu net.Conn // nil while the machine is off
	seen map[*attached]bool
}

// attachedSize is how many reads a slow reader may be behind; what is more is
// lost, as on a wire.
const attachedSize = 256

// attached is one who listens and types.
type attached struct {
	port *serialPort
	c    chan []byte
	rest []byte
	done chan struct{}
	once sync.Once
}

func (m *Machine) serialSocket() string { return filepath.Join(m.Dir, "ser") }

// open listens for the QEMU that is about to start.
func (p *serialPort) open(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ln = ln
	go p.serve(ln)
	return nil
}

func (p *serialPort) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.qemu = c
		p.mu.Unlock()
		p.read(c)
	}
}

// read passes on what one QEMU prints, until it ends.
func (p *serialPort) read(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		p.mu.Lock()
		for a := range p.seen {
			select {
			case a.c <- append([]byte(nil), buf[:n]...):
			default:
			}
		}
		if err != nil {
			p.qemu = nil
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
}

// close ends what open began. Who is attached stays so.
func (p *serialPort) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		p.ln.Close()
		p.ln = nil
	}
	if p.qemu != nil {
		p.qemu.Close()
	}
}

// Attach listens to the serial port of m and types into it, also while m is
// off: then nothing comes, and what is typed is lost.
func (m *Machine) Attach() io.ReadWriteCloser {
	a := &attached{port: &m.port, c: make(chan []byte, attachedSize), done: make(chan struct{})}
	m.port.mu.Lock()
	defer m.port.mu.Unlock()
	if m.port.seen == nil {
		m.port.seen = map[*attached]bool{}
	}
	m.port.seen[a] = true
	return a
}

func (a *attached) Read(b []byte) (int, error) {
	for len(a.rest) == 0 {
		select {
		case a.rest = <-a.c:
		case <-a.done:
			return 0, io.EOF
		}
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *attached) Write(b []byte) (int, error) {
	a.port.mu.Lock()
	q := a.port.qemu
	a.port.mu.Unlock()
	select {
	case <-a.done:
		return 0, io.ErrClosedPipe
	default:
	}
	if q == nil {
		return len(b), nil
	}
	return q.Write(b)
}

func (a *attached) Close() error {
	a.once.Do(func() {
		close(a.done)
		a.port.mu.Lock()
		defer a.port.mu.Unlock()
		delete(a.port.seen, a)
	})
	return nil
}

// ServeSerial attaches whoever connects to ln, as a serial concentrator does
// and as ipmi_sim wants it (ipmi_lan(5): sol "tcp:HOST:PORT"), until ln is
// closed.
func (m *Machine) ServeSerial(ln net.Listener) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		wait.Go(func() {
			a := m.Attach()
			wait.Go(func() {
				_, _ = io.Copy(c, a) // it ends when either side does
				c.Close()
			})
			_, _ = io.Copy(a, c)
			a.Close()
			c.Close()
		})
	}
}

// EchoDisk is a disk image without a system: its boot sector sends back what
// the serial port gets, for tests of consoles that need no kernel.
func EchoDisk() []byte {
	b := make([]byte, 1<<20)
	copy(b, []byte{
		0xba, 0xfd, 0x03, // mov dx, 0x3fd: line status of the 16550
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1: data ready
		0x74, 0xfb, // jz in
		0xba, 0xf8, 0x03, // mov dx, 0x3f8: data
		0xec,       // in al, dx
		0xee,       // out dx, al
		0xeb, 0xf1, // jmp to the beginning
	})
	b[510], b[511] = 0x55, 0xaa
	return b
}
