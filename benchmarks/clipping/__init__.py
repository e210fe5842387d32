"""What each way to clip costs and saves: small runs, clean and with faults, beside the best fixed norm of each."""
