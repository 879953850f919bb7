package images

// Store is a folder of images, addressed by content:
//
//	blobs/DIGEST      compressed images
//	manifests/DIGEST  signed manifests (Envelope)
//	names/NAME        the digest a name stands for (channel)
type Store struct{ contract }

type contract struct{}

const unbuilt = "images: being built"

// OpenStore opens or makes the folder.
func OpenStore(dir string) (*Store, error) { panic(unbuilt) }

// Resolve turns a name, a digest or a unique prefix of one into the digest of a manifest.
func (s *Store) Resolve(ref string) (Digest, error) { panic(unbuilt) }

// Manifest returns an image's manifest, unverified: agents verify for themselves.
func (s *Store) Manifest(d Digest) (Manifest, error) { panic(unbuilt) }
