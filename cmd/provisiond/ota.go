package main

type otaCmd struct {
	Encrypt otaEncryptCmd `cmd:"" help:"Encrypt an application for one unit's slot, to be written raw, with a signed manifest."`
	Key     otaKeyCmd     `cmd:"" help:"Make a key that signs manifests."`
	Package otaPackageCmd `cmd:"" help:"Make and open esp_encrypted_img files, the vendor's own encrypted updates."`
	Serve   otaServeCmd   `cmd:"" help:"The OTA server: units fetch their ciphertext and manifests from it."`
	Release otaReleaseCmd `cmd:"" help:"The releases of an OTA server, and who is offered which; also while it runs."`
	Unit    otaUnitCmd    `cmd:"" help:"What an OTA server knows of a unit; pin it, or put it into a channel."`
}
