package swarm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// reread makes the frame of a chunk from what the disk returns, and holds that
// against the manifest first: a disk that forgets makes no liar of its node.
func (s *Client) reread(i int) ([]byte, error) {
	if s.c.Disk == "" {
		return nil, errors.New("nothing is on a disk here")
	}
	k := s.c.Manifest.Chunks[i]
	f, err := os.Open(s.c.Disk)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, k.Length)
	if _, err := f.ReadAt(b, k.Offset); err != nil && !(errors.Is(err, io.EOF)) {
		return nil, err
	}
	// Memory is for frames, which more peers will want; the plain bytes are
	// not read again.
	_ = unix.Fadvise(int(f.Fd()), k.Offset, k.Length, unix.FADV_DONTNEED)
	if !k.Holds(b) {
		return nil, fmt.Errorf("%s at %d does not return what was written", s.c.Disk, k.Offset)
	}
	e := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(e)
	return slices.Clip(e.EncodeAll(b, make([]byte, 0, len(b)/2))), nil
}
