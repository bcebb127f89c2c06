package chip

import "slices"

// Sureness says how well a statement about silicon is founded.
type Sureness string

// How sure an advisory is: nobody here has tried any of them on silicon.
const (
	// SureRead: read in the vendor's sources or documents.
	SureRead Sureness = "read in the vendor's sources"
	// SureReported: seen as an excerpt of an advisory, an errata sheet or an issue only.
	SureReported Sureness = "reported"
	// SureInferred: inferred from other facts.
	SureInferred Sureness = "inferred"
)

// Advisory is a weakness or a fault of silicon, or of what runs on it, that whoever
// signs a product off has to know of.
type Advisory struct {
	ID    string   `json:"id"`
	Chips []string `json:"chips"` // by Model.Name
	// From is the first revision that has it, Below the first that has it no more; 0
	// for Below: every later one.
	From  Revision `json:"from"`
	Below Revision `json:"below,omitempty"`
	// When says what a product has to use for it to matter; empty: nothing more.
	When      string   `json:"when,omitempty"`
	Statement string   `json:"statement"`
	Handling  string   `json:"handling"`
	Source    string   `json:"source"`
	Sure      Sureness `json:"sure"`
}

// Concerns reports whether silicon has it.
func (a Advisory) Concerns(chipName string, rev Revision) bool {
	return slices.Contains(a.Chips, chipName) && rev >= a.From && (a.Below == 0 || rev < a.Below)
}

// Advisories lists what is known of silicon of a revision, in the order of
// AllAdvisories. It is a list to begin with and not a complete one: the vendor's own
// pages say more.
func (m Model) Advisories(rev Revision) []Advisory {
	return slices.DeleteFunc(AllAdvisories(), func(a Advisory) bool { return !a.Concerns(m.Name, rev) })
}

// FindAdvisory finds one by its id, for records that name only that.
func FindAdvisory(id string) (Advisory, bool) {
	all := AllAdvisories()
	if i := slices.IndexFunc(all, func(a Advisory) bool { return a.ID == id }); i >= 0 {
		return all[i], true
	}
	return Advisory{}, false
}

// AllAdvisories lists every advisory (esp-facts H, H.2). An id stays what it is: journals
// and certificates name it.
func AllAdvisories() []Advisory {
	every := make([]string, 0, len(all()))
	for _, m := range all() {
		every = append(every, m.Name)
	}
	return []Advisory{
		{
			ID: "CVE-2020-15048", Chips: []string{"esp32"}, Below: 300,
			Statement: "Electromagnetic or voltage faults get past flash encryption and encrypted Secure Boot (also CVE-2020-13629 and CVE-2019-17391).",
			Handling:  "Use silicon v3.x: min_chip_revision \"3.0\".",
			Source:    "CVE-2020-15048, CVE-2020-13629, CVE-2019-17391; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "CVE-2023-35818", Chips: []string{"esp32"}, From: 300, Below: 302,
			Statement: "An electromagnetic fault gives control of the program counter whatever Secure Boot and flash encryption say, and from there the ROM's download mode and plaintext (AR2023-005).",
			Handling:  "No fuse stops it, UART_DOWNLOAD_DIS neither: weigh it against what the product guards, and give every unit a key of its own.",
			Source:    "CVE-2023-35818; ESP-IDF docs/en/security/vulnerabilities.rst; esp-facts H.2", Sure: SureRead,
		},
		{
			ID: "AR2023-007", Chips: []string{"esp32c3", "esp32c6"},
			Statement: "Power analysis finds the flash key from the first 128 bytes of flash; a voltage fault gets past Secure Boot.",
			Handling:  "A key of its own for every unit, flash inside the package; prefer chips with XTS_DPA_PSEUDO_LEVEL.",
			Source:    "Espressif AR2023-007 as quoted in esp-idf#9035 and courk.cc 2024-01; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "AES-11401", Chips: []string{"esp32h2"}, Below: 102,
			Statement: "Power analysis finds the flash key, and this silicon has no pseudo rounds against it.",
			Handling:  "Use silicon v1.2, where XTS_DPA_PSEUDO_LEVEL is burned: min_chip_revision \"1.2\".",
			Source:    "ESP32-H2 errata AES-11401; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "ECC-11400", Chips: []string{"esp32h2"}, Below: 102, When: "ECDSA or ECDH keys in the chip",
			Statement: "Point multiplication takes a time that depends on the key.",
			Handling:  "Use silicon v1.2: min_chip_revision \"1.2\".",
			Source:    "ESP32-H2 errata ECC-11400; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "BOOT-9537", Chips: []string{"esp32h2"}, Below: 102,
			Statement: "The chip may fall into the download mode over USB when its supply rises slowly.",
			Handling:  "Mind the rise of the supply, or use silicon v1.2.",
			Source:    "ESP32-H2 errata BOOT-9537; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "HUK-576", Chips: []string{"esp32c5"}, Below: 102, When: "keys from the Key Manager",
			Statement: "The hardware unique key of the Key Manager is not reliable.",
			Handling:  "Flash keys come from key blocks here, never from the Key Manager; leave FORCE_USE_KEY_MANAGER_KEY at 0.",
			Source:    "ESP32-C5 errata HUK-576; esp-facts C.4, H.2", Sure: SureReported,
		},
		{
			ID: "FLASH-938", Chips: []string{"esp32c5"}, Below: 102, When: "encrypted writes by the application",
			Statement: "Encrypted writes to flash by the chip itself can fail while the core runs at 240 MHz.",
			Handling:  "Images are encrypted on the host here; an application that writes encrypted partitions needs another core frequency or silicon v1.2.",
			Source:    "ESP32-C5 errata FLASH-938; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "ROM-764", Chips: []string{"esp32p4"}, From: 300, Below: 301, When: "Secure Boot",
			Statement: "A wrong buffer address in the ROM makes it fail its check of the bootloader's signature.",
			Handling:  "Prove Secure Boot on this revision before production; no profile that closes the chip.",
			Source:    "ESP32-P4 errata ROM-764; esp-facts H 10", Sure: SureReported,
		},
		{
			ID: "ROM-770", Chips: []string{"esp32p4"}, From: 301, Below: 302, When: "Secure Download Mode",
			Statement: "The loader leaves the flash without supply, and in Secure Download Mode nothing can switch it on: no flash can be written any more.",
			Handling:  "Profile release is refused by default; take closed, or stay with hybrid.",
			Source:    "ESP32-P4 errata ROM-770; which revision by elimination; esp-facts H 10", Sure: SureInferred,
		},
		{
			ID: "ROM-816", Chips: []string{"esp32p4"}, From: 302, Below: 303, When: "Secure Download Mode with DOWNLOAD_MODE_XPD_ON",
			Statement: "The ROM's way to switch the flash on hangs when it runs twice, as a reset into the download mode over UART makes it.",
			Handling:  "Profile release is refused by default; take closed, or stay with hybrid.",
			Source:    "ESP32-P4 errata ROM-816; esp-facts H 10", Sure: SureReported,
		},
		{
			ID: "SECURE_BOOT_V2_ECDSA_INSECURE", Chips: []string{"esp32c5", "esp32c61", "esp32h2", "esp32p4"}, When: "Secure Boot with ECDSA",
			Statement: "The check of ECDSA signatures at boot accepts certain crafted ones.",
			Handling:  "Sign with RSA-3072; ESP32-C61 has no RSA, so its Secure Boot is not to be called strong.",
			Source:    "ESP-IDF components/bootloader/Kconfig.projbuild; esp-facts E.1, H.2", Sure: SureRead,
		},
		{
			ID: "AR2022-006", Chips: []string{"esp32", "esp32c3", "esp32s2", "esp32s3"},
			Statement: "With small probability a fuse does not take its bit.",
			Handling:  "Done here for every burn: the vendor's timing, read-back of each bit, up to three burns of the same data.",
			Source:    "Espressif AR2022-006, 2022-09-22; esp-facts B.4-B.6, H.2", Sure: SureReported,
		},
		{
			ID: "AR2022-004", Chips: []string{"esp32s3"}, Below: 3, When: "download over USB-OTG",
			Statement: "Early batches left the factory with DIS_USB_OTG_DOWNLOAD_MODE burned (USBOTG-4289; date codes before 2219).",
			Handling:  "Use UART or USB-JTAG-Serial. The fuse does not count as a sign that somebody provisioned the chip.",
			Source:    "Espressif AR2022-004; ESP32-S3 errata USBOTG-4289; esp-facts H 12, H.2", Sure: SureRead,
		},
		{
			ID: "CVE-2018-18558", Chips: []string{"esp32"}, When: "a bootloader of ESP-IDF before 3.0.6 or 3.1.1",
			Statement: "A crafted image overwrites the bootloader while it is loaded.",
			Handling:  "Build with a current ESP-IDF.",
			Source:    "CVE-2018-18558; esp-facts H.2", Sure: SureReported,
		},
		{
			ID: "CVE-2024-28183", Chips: every, When: "anti-rollback with an older ESP-IDF",
			Statement: "Two images that change places between two checks get past the check of secure_version.",
			Handling:  "Build bootloader and application with an ESP-IDF that has the fix (GHSA-22x6-3756-pfp8).",
			Source:    "CVE-2024-28183; ESP-IDF docs/en/security/vulnerabilities.rst; esp-facts G.4, H.2", Sure: SureRead,
		},
	}
}
