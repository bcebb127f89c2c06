package serve

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// awaitLink waits until a symbolic link is there, or gone.
func awaitLink(t *testing.T, link string, there bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		_, err := os.Lstat(link)
		if (err == nil) == there {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("link there: %v, want %v", !there, there)
		}
	}
}

func openLink(t *testing.T, link string) *os.File {
	t.Helper()
	f, err := os.OpenFile(link, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return f
}

func setSpeed(t *testing.T, f *os.File, baud uint32) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	err = conn.Control(func(fd uintptr) {
		tio, err := unix.IoctlGetTermios(int(fd), unix.TCGETS2)
		if err != nil {
			inner = err
			return
		}
		tio.Cflag = tio.Cflag&^unix.CBAUD | unix.BOTHER
		tio.Ispeed, tio.Ospeed = baud, baud
		inner = unix.IoctlSetTermios(int(fd), unix.TCSETS2, tio)
	})
	if err := errors.Join(err, inner); err != nil {
		t.Fatal(err)
	}
}

func TestPTY(t *testing.T) {
	b, link := newBoard(), filepath.Join(t.TempDir(), "board")
	stop := start(t, func(ctx context.Context) error { return PTY(ctx, b, link) })
	awaitLink(t, link, true)
	b.awaitLast(t, "baud 115200")

	b.print("nobody hears this")
	b.awaitDrained(t)
	f := openLink(t, link)
	all := make([]byte, 256) // every byte passes: nothing is echoed, mapped or a signal
	for i := range all {
		all[i] = byte(i)
	}
	send(t, f, all)
	b.await(t, "all bytes", func(l []string) bool { return strings.HasSuffix(l[len(l)-1], "fcfdfeff") })
	b.print("back\r\n" + string(all))
	expect(t, f, append([]byte("back\r\n"), all...))

	// The rate is followed before the bytes that were sent with it, and without any.
	setSpeed(t, f, 460800)
	send(t, f, []byte{0x55})
	log := b.await(t, "the byte", func(l []string) bool { return l[len(l)-1] == "write 55" })
	if log[len(log)-2] != "baud 460800" {
		t.Errorf("the board saw %q", log)
	}
	setSpeed(t, f, 74880)
	b.awaitLast(t, "baud 74880")

	// A client closes, the board prints, another client opens: it hears only what
	// comes from then on, and finds the settings as the first did.
	b.print("left unread")
	b.awaitDrained(t)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.awaitLast(t, "baud 115200")
	b.print("nobody hears this either")
	b.awaitDrained(t)
	f = openLink(t, link)
	send(t, f, []byte{1})
	b.awaitLast(t, "write 01")
	b.print("news")
	expect(t, f, []byte("news"))

	stop()
	if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is still there: %v", err)
	}
	if n, err := f.Read(make([]byte, 1)); err == nil {
		t.Errorf("the terminal still gives %d bytes", n)
	}
}

func TestPTYTwoClients(t *testing.T) {
	b, link := newBoard(), filepath.Join(t.TempDir(), "board")
	start(t, func(ctx context.Context) error { return PTY(ctx, b, link) })
	awaitLink(t, link, true)
	one, two := openLink(t, link), openLink(t, link)
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	b.print("still here")
	expect(t, two, []byte("still here"))
}

// TestPTYFullBuffer: a client that does not read loses output, the server goes on.
func TestPTYFullBuffer(t *testing.T) {
	b, link := newBoard(), filepath.Join(t.TempDir(), "board")
	start(t, func(ctx context.Context) error { return PTY(ctx, b, link) })
	awaitLink(t, link, true)
	f := openLink(t, link)
	b.print(strings.Repeat("x", 64<<10))
	b.awaitDrained(t)
	send(t, f, []byte{7})
	b.awaitLast(t, "write 07")
}

func TestPTYUnplug(t *testing.T) {
	b, link := newBoard(), filepath.Join(t.TempDir(), "board")
	start(t, func(ctx context.Context) error { return PTY(ctx, reopenable{b}, link) })
	awaitLink(t, link, true)
	f := openLink(t, link)
	b.unplug()
	awaitLink(t, link, false)
	if _, err := io.ReadAll(f); err == nil { // a hang-up reads as an error, not as an end
		t.Log("the terminal ended without an error")
	}
	b.plug()
	awaitLink(t, link, true)
	f = openLink(t, link)
	send(t, f, []byte{3})
	b.awaitLast(t, "write 03")
	b.print("again")
	expect(t, f, []byte("again"))
}

func TestPTYLink(t *testing.T) {
	dir := t.TempDir()
	run := func(link string) error { return PTY(context.Background(), newBoard(), link) }
	if err := run(""); err == nil {
		t.Error("no path: no error")
	}
	if err := run(filepath.Join(dir, "missing", "board")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(file); err == nil {
		t.Error("a file in the way: no error")
	}
	if p, _ := os.ReadFile(file); string(p) != "mine" {
		t.Error("a file in the way was touched")
	}

	// A stale link is replaced; one that is another's by the end stays.
	link := filepath.Join(dir, "board")
	if err := os.Symlink("/dev/pts/no-such", link); err != nil {
		t.Fatal(err)
	}
	b := newBoard()
	stop := start(t, func(ctx context.Context) error { return PTY(ctx, b, link) })
	b.awaitLast(t, "baud 115200")
	for now := ""; !strings.HasPrefix(now, "/dev/pts/") || now == "/dev/pts/no-such"; {
		var err error
		if now, err = os.Readlink(link); err != nil {
			t.Fatal(err)
		}
	}
	if err := placeLink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	stop()
	if now, _ := os.Readlink(link); now != "/dev/null" {
		t.Errorf("another's link is now %q", now)
	}
	if rest, _ := filepath.Glob(filepath.Join(dir, ".board*")); rest != nil {
		t.Errorf("left behind: %q", rest)
	}
}
