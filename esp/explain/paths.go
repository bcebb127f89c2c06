package explain

import (
	"errors"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
)

// Way is a way into a unit with flash encryption. The texts are API.
type Way string

// The ways.
const (
	WayOTAWrite        Way = "esp_ota_write"           // the chip encrypts what the application gives it
	WayRaw             Way = "esp_partition_write_raw" // as it is, then esp_ota_set_boot_partition
	WaySerial          Way = "serial"                  // as it is, by the loader, for as long as that is open (docs/recipe.md)
	WaySerialEncrypted Way = "serial-encrypted"        // the chip encrypts (write-flash --encrypt); development mode only
	WayEncryptedImg    Way = "esp_encrypted_img"       // the component decrypts and calls esp_ota_write
)

// Answer is what a way says. The texts are API.
type Answer string

// The answers.
const (
	Takes   Answer = "takes"
	Refuses Answer = "refuses"
	Cannot  Answer = "cannot-know" // it depends on what was not given
)

// Path is one way, and what it says to the file.
type Path struct {
	Way     Way     `json:"way"`
	Slot    string  `json:"slot,omitempty"`
	Address *uint32 `json:"address,omitempty"`
	Answer  Answer  `json:"answer"`
	// Message is what the device prints.
	Message string `json:"message,omitempty"`
	Why     string `json:"why"`
}

func (e *explainer) add(p Path) { e.r.Paths = append(e.r.Paths, p) }

func (e *explainer) paths() {
	e.otaWrite()
	e.raw()
	e.serial()
	e.encryptedImgPath()
}

// invalidMagic is what esp_ota_write prints.
func invalidMagic(b byte) string {
	return fmt.Sprintf("OTA image has invalid magic byte (expected 0xE9, saw 0x%02x)", b)
}

// goodApp says that the file is, in plaintext, an application without a fault
// that this program sees, or why it is not.
func (e *explainer) goodApp() (why string) {
	switch {
	case e.r.Image == nil:
		return "it is no single image"
	case e.r.Problem != "" && e.parsed == nil:
		return e.r.Problem
	case !e.r.Image.App:
		return "the image has no application description: it is a bootloader, or very old; some chips notice only when they boot it"
	}
	if c := e.o.Chip; c != nil && e.parsed != nil {
		if err := e.parsed.CheckFor(*c, e.o.Revision); err != nil {
			return err.Error()
		}
	}
	return ""
}

// signatureFailed is what the boot code prints last with Secure Boot.
const signatureFailed = "Secure boot signature verification failed"

// untrusted says why a unit with Secure Boot does not take the image.
func (e *explainer) untrusted() string {
	scheme, i := e.o.SecureBootScheme, e.r.Image
	if scheme == "" || i == nil || e.o.Chip == nil {
		return ""
	}
	why := ""
	switch {
	case !i.Signed:
		why = "the image is not signed"
	case i.SignatureProblem != "":
		why = "its signature is not good: " + i.SignatureProblem
	default:
		if err := e.signatures.CheckTrust(e.o.Chip.SecureBoot, scheme, e.o.SecureBootDigests); err != nil {
			why = err.Error()
		}
	}
	if why == "" {
		return ""
	}
	return fmt.Sprintf("the unit has Secure Boot (%s), and %s", scheme, why)
}

// slots are the OTA slots of the table.
func (e *explainer) slots() (out []partition.Entry) {
	if e.o.Table == nil {
		return nil
	}
	for _, s := range e.o.Table.Entries {
		if s.IsOTA() {
			out = append(out, s)
		}
	}
	return out
}

// tooLarge speaks of a file that a slot does not hold.
func (e *explainer) tooLarge(slot string, size uint64) string {
	return fmt.Sprintf("the file has %d bytes and %s %d: the write is refused (ESP_ERR_INVALID_SIZE)", len(e.b), slot, size)
}

// noRoom says that no slot holds the file.
func (e *explainer) noRoom() string {
	largest := uint64(0)
	for _, s := range e.slots() {
		largest = max(largest, uint64(s.Size))
	}
	if largest == 0 || uint64(len(e.b)) <= largest {
		return ""
	}
	return e.tooLarge("the largest slot", largest)
}

// trailing speaks of bytes behind an image that is whole.
func (e *explainer) trailing() string {
	if e.r.Problem == "" {
		return ""
	}
	return "; nothing on the device looks at what follows the image"
}

func (e *explainer) otaWrite() {
	p := Path{Way: WayOTAWrite}
	switch {
	case e.r.FirstByte != image.Magic:
		p.Answer, p.Message = Refuses, invalidMagic(e.r.FirstByte)
		p.Why = "it wants a plaintext image, which begins with 0xE9"
		if e.r.Kind == KindCiphertext {
			p.Why += "; what is encrypted already is written with esp_partition_write_raw"
		}
	case e.noRoom() != "":
		p.Answer, p.Why = Refuses, e.noRoom()
	case e.r.Kind == KindImage && e.goodApp() == "" && e.untrusted() != "":
		p.Answer, p.Why, p.Message = Refuses, e.untrusted(), signatureFailed
	case e.r.Kind == KindImage && e.goodApp() == "":
		p.Answer, p.Why = Takes, "it is a plaintext application; the chip encrypts it while it writes"+e.trailing()
	case e.r.Kind == KindImage:
		p.Answer, p.Why = Refuses, e.goodApp()
		p.Message = e.deviceRefusal(e.b, 0, 1<<32)
	case e.r.Kind == KindNoise || e.r.Kind == KindCiphertext || e.r.Kind == KindTwice:
		p.Answer = Refuses
		p.Why = "it begins with 0xE9 by chance, as one ciphertext in 256 does: the writing works, the chip encrypts it once more, and esp_ota_end refuses what it then reads"
	default:
		p.Answer, p.Why = Refuses, "it begins with 0xE9 and is no image: the writing works, and esp_ota_end refuses it"
	}
	e.add(p)
}

// raw asks for every slot, and for the address that was given.
func (e *explainer) raw() {
	slots := e.slots()
	for _, s := range slots {
		e.rawAt(s.SubtypeName(), s.Offset, uint64(s.Size))
	}
	switch {
	case len(slots) > 0:
	case e.o.Address != nil:
		e.rawAt("", *e.o.Address, 1<<32-uint64(*e.o.Address))
	case len(e.r.Layers) == 1:
		e.rawAt("", e.r.Layers[0].Address, 1<<32-uint64(e.r.Layers[0].Address))
	case e.r.Kind == KindNoise && e.o.Cipher == nil:
		e.add(Path{Way: WayRaw, Answer: Cannot, Why: "it may be ciphertext: whether it is of this unit and slot shows only with the unit's key"})
	default:
		e.add(Path{
			Way: WayRaw, Answer: Refuses, Message: "image at 0x… has invalid magic byte (nothing flashed here?)",
			Why: "it wants ciphertext of this unit and slot; the chip decrypts everything else to noise",
		})
	}
}

func (e *explainer) rawAt(slot string, at uint32, size uint64) {
	p := Path{Way: WayRaw, Slot: slot, Address: &at}
	defer func() { e.add(p) }()
	switch {
	case uint64(len(e.b)) > size:
		p.Answer, p.Why = Refuses, e.tooLarge("the slot", size)
		return
	case e.o.Cipher == nil && e.r.Kind == KindNoise:
		p.Answer, p.Why = Cannot, "it may be ciphertext: whether it is of this unit and slot shows only with the unit's key"
		return
	case e.o.Cipher == nil:
		p.Answer, p.Why = Refuses, "it is no ciphertext: the chip decrypts it to noise"
		p.Message = fmt.Sprintf("image at 0x%x has invalid magic byte (nothing flashed here?)", at)
		return
	}
	seen := e.open(e.b, at, len(e.b))
	if seen == nil {
		p.Answer, p.Why = Refuses, "its length or this address is no whole number of blocks of 16 bytes"
		return
	}
	if p.Message = e.deviceRefusal(seen, at, size); p.Message != "" {
		p.Answer, p.Why = Refuses, e.whyNot(at)
		return
	}
	p.Answer, p.Why = Takes, "decrypted here, it is the image"+e.trailing()
	switch {
	case e.r.Kind == KindCiphertext && e.r.Layers[0].Address == at && e.goodApp() != "":
		p.Answer, p.Why = Refuses, e.goodApp()
	case e.untrusted() != "":
		p.Answer, p.Why, p.Message = Refuses, e.untrusted(), signatureFailed
	case e.r.Image != nil && e.r.Image.SignatureProblem != "":
		p.Why += "; its signature is not good, which a unit with Secure Boot refuses"
	}
}

// whyNot says why the chip does not see an image at an address.
func (e *explainer) whyNot(at uint32) string {
	switch {
	case e.r.Kind == KindImage:
		return "it is plaintext: the chip decrypts it to noise; encrypt it for this slot, or give it to esp_ota_write"
	case e.r.Kind == KindCiphertext && e.r.Layers[0].Address != at:
		return fmt.Sprintf("it is ciphertext for 0x%x%s, and this is another address", e.r.Layers[0].Address, inBrackets(e.r.Layers[0].Place))
	case e.r.Kind == KindCiphertext && e.r.Problem != "" && e.parsed == nil:
		return e.r.Problem
	case e.r.Kind == KindCiphertext:
		return "it is ciphertext of this address and not of an application for this chip"
	case e.r.Kind == KindTwice:
		return "it is encrypted twice: the chip undoes it once"
	case e.r.Kind == KindNoise:
		return "with this key it is noise here: another unit's key, or no ciphertext"
	}
	return "it is no ciphertext of this key: the chip decrypts it to noise"
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// plaintextContent says that the file is plaintext that belongs into flash.
func (e *explainer) plaintextContent() bool {
	switch e.r.Kind {
	case KindImage, KindPartitionTable, KindOTAData, KindMerged, KindErased:
		return e.r.Problem == ""
	}
	return false
}

func (e *explainer) serial() {
	plain := Path{Way: WaySerial, Answer: Refuses, Why: "no board boots from it"}
	enc := Path{Way: WaySerialEncrypted, Answer: Refuses, Why: "no board boots from it"}
	switch {
	case e.r.Kind == KindCiphertext && e.r.Problem == "":
		at := e.r.Layers[0].Address
		plain.Answer, plain.Address = Takes, &at
		plain.Why = fmt.Sprintf("at 0x%x%s, and nowhere else, for as long as the loader is open", at, inBrackets(e.r.Layers[0].Place))
		if e.everywhere() {
			plain.Address, plain.Why = nil, "at any address, for as long as the loader is open"
		}
		enc.Why = "the chip would encrypt it a second time"
	case e.r.Kind == KindTwice:
		plain.Why, enc.Why = "it is encrypted twice: the chip undoes it once", "the chip would encrypt it a third time"
	case e.r.Kind == KindNoise && e.o.Cipher == nil:
		plain.Answer, plain.Why = Cannot, "it may be ciphertext: of which address shows only with the unit's key"
		enc.Why = "if it is ciphertext, the chip would encrypt it a second time"
	case e.r.Kind == KindNoise:
		plain.Why, enc.Why = "it is no ciphertext of this key", "if it is another key's ciphertext, the chip would encrypt it a second time"
	case e.plaintextContent():
		plain.Why = "it is plaintext: a chip with flash encryption decrypts it to noise (a chip without takes it)"
		enc.Answer, enc.Why = Takes, "the chip encrypts it, in development mode"
	}
	e.add(plain)
	e.add(enc)
}

func (e *explainer) encryptedImgPath() {
	p := Path{Way: WayEncryptedImg, Answer: Refuses, Why: "it is another format"}
	var ee *encimg.Error
	switch _, err := encimg.Parse(e.b); {
	case err == nil:
		p.Answer, p.Why = Takes, "if the device has the private key; only then it shows whether the file is whole"
	case errors.As(err, &ee):
		p.Message = ee.Device
		if e.r.Kind == KindEncryptedImg {
			p.Why = ee.Detail
		}
	}
	e.add(p)
}

// summarize writes the sentence for people, and the notes.
func (e *explainer) summarize() {
	r := e.r
	note := func(format string, args ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, args...)) }
	switch r.Kind {
	case KindCiphertext:
		l := r.Layers[0]
		r.Summary = fmt.Sprintf("Ciphertext of this key for 0x%x%s, scheme %s: %s.", l.Address, inBrackets(l.Place), l.Scheme, e.contentWords())
		everywhere := e.everywhere()
		if e.o.Address != nil && *e.o.Address != l.Address && !everywhere {
			note("it is not ciphertext for 0x%x, the address that was given", *e.o.Address)
		}
		if everywhere {
			note("FLASH_CRYPT_CONFIG is 0: no address changes the key, so it is the same ciphertext everywhere, and for which place it was made cannot be seen")
		}
	case KindTwice:
		a, b := r.Layers[0], r.Layers[1]
		r.Summary = fmt.Sprintf("Encrypted twice with this key, for 0x%x%s and then for 0x%x%s: %s.", b.Address, inBrackets(b.Place), a.Address, inBrackets(a.Place), e.contentWords())
		note("this happens when a chip encrypts what was ciphertext already (write-flash --encrypt), or a tool runs twice")
	case KindImage, KindPartitionTable, KindOTAData, KindMerged:
		r.Summary = fmt.Sprintf("Plaintext: %s.", e.contentWords())
	case KindErased:
		r.Summary = "0xFF in every byte: erased flash, or OTA data in its initial state."
		note("an encrypted chip decrypts erased flash to noise: OTA data in its initial state is 0xFF that was encrypted")
	case KindZeros:
		r.Summary = "0x00 in every byte."
	case KindEncryptedImg:
		r.Summary = fmt.Sprintf("An esp_encrypted_img file (%s): for a device that decrypts it itself, and good for every slot.", r.Format)
		if r.Problem != "" {
			r.Summary = "The beginning of an esp_encrypted_img file: " + r.Problem + "."
		} else {
			note("which key opens it cannot be seen from outside")
		}
	case KindOther:
		r.Summary = fmt.Sprintf("A file of another kind (%s): no way into a board takes it.", r.Format)
	case KindNoise:
		e.noise(note)
	case KindUnknown:
		r.Summary = "Not recognised: no ESP-IDF image, and not as even as ciphertext is."
		if len(e.b) < minData {
			r.Summary = "Not recognised: no ESP-IDF image, and too short to tell ciphertext from something else."
		}
	}
	if why := e.untrusted(); why != "" {
		note("%s: it does not boot there, whichever way it came", why)
	}
	if i := r.Image; i != nil && i.Signed && i.SignatureProblem != "" {
		note("the signature sector is not good: %s", i.SignatureProblem)
	}
	if over := len(e.b) % 16; len(r.Layers) > 0 && over != 0 {
		note("the last %d bytes are no whole block: the file was cut off or something was appended", over)
	}
}

func (e *explainer) noise(note func(string, ...any)) {
	r := e.r
	repeats := blocksRepeat(e.b)
	switch {
	case e.o.Cipher != nil:
		r.Summary = "As even as ciphertext, and nothing that is known comes out of it with this key at any sector of the flash."
		config := ""
		if e.o.Scheme == chip.SchemeESP32 {
			config = "of another FLASH_CRYPT_CONFIG, "
		}
		note("it is another unit's, %sdamaged at its beginning, a part of a file that begins inside a sector, data that is like noise, or something compressed", config)
	default:
		r.Summary = "As even as ciphertext. Whose, and for which address, shows only with the unit's key; compressed data looks the same."
	}
	if repeats > 0 {
		note("%d units of 32 bytes have two equal halves: that is the ESP32's own scheme, and not XTS", repeats)
	} else if e.o.Cipher == nil && len(e.b) >= 64<<10 {
		note("no unit of 32 bytes has two equal halves: if it is the ciphertext of firmware, it is XTS and not the ESP32's own scheme")
	}
	if r.FirstByte == image.Magic {
		note("it begins with 0xE9, the first byte of an image; one ciphertext in 256 does so by chance")
	}
	if len(e.b)%16 != 0 {
		note("%d bytes are no whole number of blocks of 16: flash ciphertext is, so it was cut off or is something else", len(e.b))
	}
}

// contentWords says what lies under the encryption.
func (e *explainer) contentWords() string {
	words := map[Kind]string{
		KindPartitionTable: "a partition table", KindOTAData: "OTA data", KindErased: "0xFF, as OTA data in its initial state",
		KindMerged: "the content of a flash, with a partition table at 0x8000", KindUnknown: "data, and no image or table",
	}[e.r.Content]
	if i := e.r.Image; i != nil {
		words = "a bootloader or old application for " + i.Chip
		if i.App {
			words = strings.TrimSpace(fmt.Sprintf("an application for %s %s", i.Chip, strings.TrimSpace(quoted(i.Project)+" "+quoted(i.Version))))
		}
		switch {
		case e.r.Problem != "":
		case i.Signed && i.SignatureProblem == "":
			words += fmt.Sprintf(", signed (%s)", i.SignatureScheme)
		case i.Signed:
			words += ", with a signature that is not good"
		default:
			words += ", not signed"
		}
	}
	if e.r.Problem != "" {
		how := ", damaged or not whole: "
		if e.parsed != nil {
			how = ", and more behind it: "
		}
		words += how + e.r.Problem
	}
	return words
}

func quoted(s string) string {
	if s == "" {
		return ""
	}
	return fmt.Sprintf("%q", s)
}
