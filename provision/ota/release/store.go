package release

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/boltfile"
	"github.com/provisiond/provisiond/internal/seal"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota"
)

// The files of a store.
const (
	stateFile    = "releases.db"
	imageFolder  = "images"
	IdentityFile = "releases.identity" // where Init puts it without another wish
)

const formatVersion = 1

var (
	bucketMeta     = []byte("meta") // "header" → header
	bucketReleases = []byte("releases")
	bucketChannels = []byte("channels")
	bucketUnits    = []byte("units") // MAC → Unit
	keyHeader      = []byte("header")
)

type header struct {
	Format    int       `json:"format"`
	Recipient string    `json:"recipient"`
	Created   time.Time `json:"created"`
}

// DefaultMemory is how much open images take at most, when nobody says otherwise.
const DefaultMemory = 256 << 20

// Options of Open.
type Options struct {
	// IdentityFile opens the images. Without it a store can be changed and not
	// served.
	IdentityFile string
	// Memory bounds the images that are open; DefaultMemory without it.
	Memory int64
}

// Store is an open release store. It is safe for concurrent use.
type Store struct {
	dir       string
	header    header
	recipient *age.X25519Recipient
	identity  *age.X25519Identity
	db        *boltfile.DB
	images    images
	now       func() time.Time

	// What decides is in memory too. write serialises changes; mu guards the maps,
	// whose values are replaced and never changed.
	write    sync.Mutex
	mu       sync.RWMutex
	releases map[string]Release
	channels map[string]Channel
}

// Init makes a store in a folder, which may exist, sealed to the identity in a
// file, which is made if it is missing. It gives the identity's file.
func Init(dir, identity string) (string, error) {
	if identity == "" {
		identity = filepath.Join(dir, IdentityFile)
	}
	path := filepath.Join(dir, stateFile)
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("%w: %s: open it, or choose another folder", ErrExists, path)
	}
	if err := os.MkdirAll(filepath.Join(dir, imageFolder), 0o700); err != nil {
		return "", err
	}
	if _, err := seal.NewIdentity(identity, "provisiond OTA releases"); err != nil && !errors.Is(err, seal.ErrExists) {
		return "", err
	}
	id, err := seal.ReadIdentity(identity)
	if err != nil {
		return "", err
	}
	h, err := encode(header{Format: formatVersion, Recipient: id.Recipient().String(), Created: time.Now().UTC().Round(0)})
	if err != nil {
		return "", err
	}
	channel, err := encode(Channel{Name: DefaultChannel})
	if err != nil {
		return "", err
	}
	return identity, explain(path, boltfile.Create(path, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketReleases, bucketChannels, bucketUnits} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(tx.Bucket(bucketMeta).Put(keyHeader, h), tx.Bucket(bucketChannels).Put([]byte(DefaultChannel), channel))
	}))
}

// Open opens the store in a folder.
func Open(dir string, o Options) (*Store, error) {
	path := filepath.Join(dir, stateFile)
	db, err := boltfile.Open(path)
	if err != nil {
		return nil, explain(path, err)
	}
	s := &Store{dir: dir, db: db, now: time.Now, releases: map[string]Release{}, channels: map[string]Channel{}}
	if err := s.load(o); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	s.images.most, s.images.open = o.Memory, s.openImage
	if s.images.most <= 0 {
		s.images.most = DefaultMemory
	}
	return s, nil
}

func (s *Store) load(o Options) error {
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketReleases, bucketChannels, bucketUnits} {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("%w: bucket %s is missing", ErrDamaged, name)
			}
		}
		if err := decode(tx.Bucket(bucketMeta).Get(keyHeader), &s.header); err != nil {
			return err
		}
		if s.header.Format != formatVersion {
			return fmt.Errorf("%w: it has format %d and this build knows %d", ErrDamaged, s.header.Format, formatVersion)
		}
		return errors.Join(
			tx.Bucket(bucketReleases).ForEach(func(k, v []byte) error {
				var r Release
				err := decode(v, &r)
				s.releases[string(k)] = r
				return err
			}),
			tx.Bucket(bucketChannels).ForEach(func(k, v []byte) error {
				var c Channel
				err := decode(v, &c)
				s.channels[string(k)] = c
				return err
			}))
	})
	if err != nil {
		return err
	}
	if s.recipient, err = age.ParseX25519Recipient(s.header.Recipient); err != nil {
		return fmt.Errorf("%w: its recipient is not valid", ErrDamaged)
	}
	if o.IdentityFile == "" {
		return nil
	}
	if s.identity, err = seal.ReadIdentity(o.IdentityFile); err != nil {
		return err
	}
	if got := s.identity.Recipient().String(); got != s.header.Recipient {
		return fmt.Errorf("%w: %s is the identity of %s, and the store is sealed to %s", seal.ErrIdentity, o.IdentityFile, got, s.header.Recipient)
	}
	return nil
}

func explain(path string, err error) error {
	var damaged *boltfile.DamagedError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, boltfile.ErrMissing):
		return fmt.Errorf("%w at %s: check the path, or make one with: provisiond ota release init", ErrMissing, path)
	case errors.Is(err, boltfile.ErrExists):
		return fmt.Errorf("%w: %s", ErrExists, path)
	case errors.Is(err, boltfile.ErrLocked):
		return fmt.Errorf("%w: %s", ErrLocked, path)
	case errors.As(err, &damaged):
		return fmt.Errorf("%w: %s: %w: restore it from a backup", ErrDamaged, path, err)
	}
	return fmt.Errorf("release store %s: %w", path, err)
}

// Close frees the store. Images that are in use stay until they are let go.
func (s *Store) Close() error {
	s.images.dropAll()
	return s.db.Close()
}

// CanServe reports whether the store was opened with the identity.
func (s *Store) CanServe() bool { return s.identity != nil }

// Add seals an image and keeps it under a name. Nobody is offered it before a
// rollout. It takes plain over and wipes it. Refusals of the image are those of ota.ParseImage.
func (s *Store) Add(ctx context.Context, name string, plain []byte, recipes []string, by string) (Release, error) {
	defer clear(plain)
	if !ValidName(name) {
		return Release{}, fmt.Errorf("%w: the release name %q: write 1 to 64 printable ASCII characters without a space", ErrInput, name)
	}
	for _, text := range append([]string{by}, recipes...) {
		if why := keystore.CheckText(text); why != "" {
			return Release{}, fmt.Errorf("%w: %q %s", ErrInput, text, why)
		}
	}
	img, err := ota.ParseImage(plain)
	if err != nil {
		return Release{}, err
	}
	model, err := chip.ByID(img.Chip())
	if err != nil {
		return Release{}, fmt.Errorf("%w: the image: %w", ErrInput, err)
	}
	app := img.App()
	r := Release{
		Name: name, Chip: model.Name, Project: text(app.ProjectName), Version: text(app.Version), SecureVersion: app.SecureVersion,
		Length: len(plain), SHA256: img.SHA256(), Signed: img.Signed(), Recipes: slices.Clone(recipes), By: by,
		Added: s.now().UTC().Round(0), File: hex.EncodeToString(random(16)) + ".age",
	}
	if _, err := s.Release(name); err == nil {
		return Release{}, exists(name)
	}
	sealed, err := seal.Seal(plain, s.recipient)
	if err != nil {
		return Release{}, err
	}
	if err := ctx.Err(); err != nil {
		return Release{}, err
	}
	path := filepath.Join(s.dir, imageFolder, r.File)
	if err := writeNew(path, sealed); err != nil {
		return Release{}, err
	}
	err = s.changeRelease(name, func(_ Release, there bool) (Release, error) {
		if there {
			return Release{}, exists(name)
		}
		return r, nil
	})
	if err != nil {
		return Release{}, errors.Join(err, os.Remove(path))
	}
	return r, nil
}

func exists(name string) error {
	return fmt.Errorf("%w: release %s: a release is never overwritten; choose another name", ErrExists, name)
}

// text makes what an image says about itself fit for a state and a screen.
func text(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F || r == '\uFFFD' {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// writeNew makes a durable file that did not exist.
func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = boltfile.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Release gives a release.
func (s *Store) Release(name string) (Release, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, ok := s.releases[name]
	if !ok {
		return Release{}, fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	return r, nil
}

// Releases gives all releases in the order in which they were added.
func (s *Store) Releases() []Release {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.releases), func(a, b Release) int {
		if c := a.Added.Compare(b.Added); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// Channels gives all channels by name.
func (s *Store) Channels() []Channel {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.channels), func(a, b Channel) int { return strings.Compare(a.Name, b.Name) })
}

// changeRelease writes a release and then shows it.
func (s *Store) changeRelease(name string, change func(r Release, there bool) (Release, error)) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	old, there := s.releases[name]
	s.mu.RUnlock()
	r, err := change(old, there)
	if err != nil {
		return err
	}
	b, err := encode(r)
	if err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketReleases).Put([]byte(name), b) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releases[name] = r
	return nil
}

func (s *Store) changeChannel(name string, change func(c *Channel) error) error {
	if !channelName.MatchString(name) {
		return fmt.Errorf("%w: the channel %q: write lower-case letters, digits and . _ -, at most 64", ErrInput, name)
	}
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	c, ok := s.channels[name]
	s.mu.RUnlock()
	if !ok {
		c = Channel{Name: name}
	}
	c.Rollouts = slices.Clone(c.Rollouts)
	if err := change(&c); err != nil {
		return err
	}
	b, err := encode(c)
	if err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketChannels).Put([]byte(name), b) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[name] = c
	return nil
}

// Rollout sets the share of a channel's units that is offered a release. The
// channel is made if there is none. A release that the channel did not have is its
// newest from then on; a share of 0 keeps its place.
func (s *Store) Rollout(channel, release string, share Share, by string) error {
	if share > All {
		return fmt.Errorf("%w: a share of %d", ErrInput, share)
	}
	if why := keystore.CheckText(by); why != "" {
		return fmt.Errorf("%w: %q %s", ErrInput, by, why)
	}
	return s.changeChannel(channel, func(c *Channel) error {
		if _, err := s.Release(release); err != nil {
			return err
		}
		r := Rollout{Release: release, Share: share, Since: s.now().UTC().Round(0), By: by}
		if i := slices.IndexFunc(c.Rollouts, func(o Rollout) bool { return o.Release == release }); i >= 0 {
			c.Rollouts[i] = r
		} else {
			c.Rollouts = append(c.Rollouts, r)
		}
		return nil
	})
}

// SetPlaintext lets units of a channel have images in plaintext, or no longer.
func (s *Store) SetPlaintext(channel string, on bool) error {
	return s.changeChannel(channel, func(c *Channel) error {
		c.Plaintext = on
		return nil
	})
}

// Halt takes a release back from everybody, pins included, until Resume.
func (s *Store) Halt(name, why string) error {
	if reason := keystore.CheckText(why); reason != "" {
		return fmt.Errorf("%w: the reason %s", ErrInput, reason)
	}
	return s.changeRelease(name, func(r Release, there bool) (Release, error) {
		if !there {
			return r, fmt.Errorf("%w: %q", ErrNotFound, name)
		}
		r.Halted, r.Why = true, why
		return r, nil
	})
}

// Current is nil while a release may be sent: it is an error once the release was
// halted or removed.
func (s *Store) Current(r Release) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	now, ok := s.releases[r.Name]
	if !ok || now.File != r.File {
		return fmt.Errorf("%w: %q was removed", ErrNotFound, r.Name)
	}
	if now.Halted {
		return fmt.Errorf("%w: %q", ErrHalted, r.Name)
	}
	return nil
}

// Resume ends a halt.
func (s *Store) Resume(name string) error {
	return s.changeRelease(name, func(r Release, there bool) (Release, error) {
		if !there {
			return r, fmt.Errorf("%w: %q", ErrNotFound, name)
		}
		r.Halted, r.Why = false, ""
		return r, nil
	})
}

// Remove removes a release and its image. Refused while a unit is pinned to it or
// a channel offers it to anybody.
func (s *Store) Remove(name string) error {
	s.write.Lock()
	defer s.write.Unlock()
	r, err := s.Release(name)
	if err != nil {
		return err
	}
	changed := map[string]Channel{}
	for _, c := range s.Channels() {
		i := slices.IndexFunc(c.Rollouts, func(o Rollout) bool { return o.Release == name })
		if i < 0 {
			continue
		}
		if c.Rollouts[i].Share > 0 && !r.Halted {
			return fmt.Errorf("%w: channel %s offers release %s to %s %% of its units: set that to 0, or halt the release, first", ErrInUse, c.Name, name, c.Rollouts[i].Share)
		}
		c.Rollouts = slices.Delete(slices.Clone(c.Rollouts), i, i+1)
		changed[c.Name] = c
	}
	for u, err := range s.Units() {
		if err != nil {
			return err
		}
		if u.Pin == name {
			return fmt.Errorf("%w: unit %s is pinned to release %s: take the pin away first", ErrInUse, u.MAC, name)
		}
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		for _, c := range changed {
			b, err := encode(c)
			if err != nil {
				return err
			}
			if err := tx.Bucket(bucketChannels).Put([]byte(c.Name), b); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketReleases).Delete([]byte(name))
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.releases, name)
	maps.Copy(s.channels, changed)
	s.mu.Unlock()
	s.images.drop(r.File)
	return os.Remove(filepath.Join(s.dir, imageFolder, r.File))
}

// Units gives every unit of which something is known, in ascending order.
func (s *Store) Units() iter.Seq2[Unit, error] {
	return func(yield func(Unit, error) bool) {
		const page = 256
		for next := []byte{}; next != nil; {
			var units []Unit
			err := s.db.View(func(tx *bolt.Tx) error {
				c := tx.Bucket(bucketUnits).Cursor()
				k, v := c.Seek(next)
				for ; k != nil && len(units) < page; k, v = c.Next() {
					var u Unit
					if err := decode(v, &u); err != nil {
						return err
					}
					units = append(units, u)
				}
				next = bytes.Clone(k)
				return nil
			})
			if err != nil {
				yield(Unit{}, err)
				return
			}
			for _, u := range units {
				if !yield(u, nil) {
					return
				}
			}
		}
	}
}

// Unit gives what is known of a unit; one of which nothing is known belongs to the
// default channel.
func (s *Store) Unit(mac chip.MAC) (Unit, error) {
	u := Unit{MAC: mac, Channel: DefaultChannel}
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketUnits).Get(mac[:])
		if b == nil {
			return nil
		}
		return decode(b, &u)
	})
	return u, err
}

func (s *Store) changeUnit(mac chip.MAC, change func(tx *bolt.Tx, u *Unit) error) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		u := Unit{MAC: mac, Channel: DefaultChannel}
		if b := tx.Bucket(bucketUnits).Get(mac[:]); b != nil {
			if err := decode(b, &u); err != nil {
				return err
			}
		}
		if err := change(tx, &u); err != nil {
			return err
		}
		b, err := encode(u)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketUnits).Put(mac[:], b)
	})
}

// Pin gives a unit one release whatever its channel says; "" takes the pin away.
func (s *Store) Pin(mac chip.MAC, release string) error {
	s.write.Lock() // so that Remove sees the pin
	defer s.write.Unlock()
	if release != "" {
		if _, err := s.Release(release); err != nil {
			return err
		}
	}
	return s.changeUnit(mac, func(_ *bolt.Tx, u *Unit) error {
		u.Pin, u.RolledBack = release, ""
		return nil
	})
}

// SetChannel puts a unit into a channel, which must exist.
func (s *Store) SetChannel(mac chip.MAC, channel string) error {
	s.mu.RLock()
	_, ok := s.channels[channel]
	s.mu.RUnlock()
	if !ok {
		return fmt.Errorf("%w: there is no channel %q: roll something out in it first", ErrInput, channel)
	}
	return s.changeUnit(mac, func(_ *bolt.Tx, u *Unit) error {
		u.Channel, u.RolledBack = channel, ""
		return nil
	})
}

// Report notes what a unit says of its update.
func (s *Store) Report(mac chip.MAC, r Result) error {
	if err := r.validate(); err != nil {
		return err
	}
	r.Time = s.now().UTC().Round(0)
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	rel, known := s.releases[r.Release]
	s.mu.RUnlock()
	err := s.changeUnit(mac, func(tx *bolt.Tx, u *Unit) error {
		u.Last = &r
		u.SecureVersion = max(u.SecureVersion, r.SecureVersion)
		switch {
		case r.Outcome == RolledBack:
			u.RolledBack = r.Release
		case r.Outcome == Confirmed && u.RolledBack == r.Release:
			u.RolledBack = ""
		}
		if !known {
			return nil
		}
		rel.Results = maps.Clone(rel.Results)
		if rel.Results == nil {
			rel.Results = map[Outcome]int{}
		}
		rel.Results[r.Outcome]++
		b, err := encode(rel)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketReleases).Put([]byte(rel.Name), b)
	})
	if err != nil || !known {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releases[rel.Name] = rel
	return nil
}

// openImage reads, opens and checks the image of a release.
func (s *Store) openImage(r Release) (*ota.Image, error) {
	if s.identity == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoIdentity, s.dir)
	}
	path := filepath.Join(s.dir, imageFolder, r.File)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: release %s: %w", ErrDamaged, r.Name, err)
	}
	defer func() { _ = f.Close() }()
	// age adds a header and 16 bytes to every 64 KiB.
	sealed, err := io.ReadAll(io.LimitReader(f, int64(r.Length)+int64(r.Length)/1000+4096))
	if err != nil {
		return nil, err
	}
	plain, err := seal.Open(sealed, s.identity)
	if err != nil {
		return nil, fmt.Errorf("%w: release %s: its sealed image does not open", ErrDamaged, r.Name)
	}
	img, err := ota.ParseImage(plain)
	if err == nil && (len(plain) != r.Length || keystore.Digest(img.SHA256()) != r.SHA256) {
		err = errors.New("it is another image")
	}
	if err != nil {
		clear(plain)
		return nil, fmt.Errorf("%w: release %s: %w", ErrDamaged, r.Name, err)
	}
	return img, nil
}
