package efuse_test

// Hashes of the plan of stages() on the chips of the transcripts.
const (
	goldenESP32 = "20d54ea7a652c37d883cf1fd7e01bc5a795cfeeae025ebf6eea092611f9a9856"
	goldenC3    = "14b23f118688e89e97e575351cff986180d06938eea4b943c01496cbdda66498"
)
