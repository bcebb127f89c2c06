package server

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"sync"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota"
)

// sealer seals the keys that are kept in memory. Its secret is long, so that a leak
// of some of the process's memory, a freed page or a bug that shows a few hundred
// bytes, gives no key: it takes all of the secret and the box. Who reads all memory
// of the process has the keys all the same.
type sealer struct {
	mu     sync.RWMutex
	secret []byte // nil once wiped
}

const sealerSize = 16 << 10

func newSealer() *sealer {
	s := &sealer{secret: make([]byte, sealerSize)}
	_, _ = rand.Read(s.secret) // never fails
	return s
}

func (s *sealer) wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.secret)
	s.secret = nil
}

// pad lays the secret's stream for a nonce over b. Each nonce is for one key.
func (s *sealer) pad(nonce [16]byte, b []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.secret == nil {
		return keystore.ErrKeyEmpty
	}
	h := sha256.New()
	var count [8]byte
	var block [sha256.Size]byte
	for i := uint64(0); len(b) > 0; i++ {
		binary.BigEndian.PutUint64(count[:], i)
		h.Reset()
		h.Write(s.secret)
		h.Write(nonce[:])
		h.Write(count[:])
		h.Sum(block[:0])
		b = b[subtle.XORBytes(b, b, block[:]):]
	}
	h.Reset()
	clear(block[:])
	return nil
}

// held is a unit whose key is sealed.
type held struct {
	sealer *sealer
	unit   ota.Unit // without its key
	nonce  [16]byte

	mu  sync.Mutex
	box []byte // nil once wiped
}

// seal takes a unit over and wipes it.
func (s *sealer) seal(u *ota.Unit) (*held, error) {
	defer u.Wipe()
	h := &held{sealer: s, unit: *u}
	h.unit.Key = keystore.Key{}
	_, _ = rand.Read(h.nonce[:]) // never fails
	err := u.Key.Use(func(key []byte) error {
		h.box = append(h.box, key...)
		return s.pad(h.nonce, h.box)
	})
	return h, err
}

// open gives the unit with its key: wipe it soon. Its error is keystore.ErrKeyEmpty
// once the key was dropped.
func (h *held) open() (*ota.Unit, error) {
	h.mu.Lock()
	key := append([]byte(nil), h.box...)
	h.mu.Unlock()
	if len(key) == 0 {
		return nil, keystore.ErrKeyEmpty
	}
	if err := h.sealer.pad(h.nonce, key); err != nil {
		return nil, err
	}
	u := h.unit
	var err error
	if u.Key, err = keystore.KeyFromBytes(key); err != nil { // it wipes them
		return nil, err
	}
	return &u, nil
}

func (h *held) wipe() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.box)
	h.box = nil
}
