"""The page's server: one temporary folder, bounded uploads and visitors, no connection to anything but its visitors."""

import os
import signal
import tempfile
from pathlib import Path

MAX_FILE_SIZE = "20mb"
MOST_VISITORS = 100  # whose last picture is kept in memory, at most 5 MB each
STYLE = """
/* Without the width, the container is as wide as its widest part: a telephone would scroll sideways. */
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
#notice { border-left: 4px solid #d97706; background: #fef3c7; padding: 10px 14px; border-radius: 6px; }
#notice * { color: #78350f !important; }
.gradio-container .main { padding-inline: clamp(12px, 3vw, 32px) !important; }
@media (max-width: 600px) {
  #table th, #table td, #table [role=gridcell] { padding-inline: 4px !important; font: 12px sans-serif !important; }
  #table th *, #table [role=gridcell] * { padding-inline: 0 !important; font: 12px sans-serif !important; }
  #table .cell-menu-button { display: none; }
}
"""


def serve(
    model: str,
    examples: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    **layout,
) -> None:
    """Serve the page until Ctrl+C or SIGTERM.

    It writes into one temporary folder only, which is removed at the end.

    Args:
        model: model directory or Hub id.
        examples: folder of pictures to pick from.
        host, port: address; default is Gradio's `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`, or 127.0.0.1 and the
            first free port from 7860.
        layout: threshold and title, see [`page.build_page`].

    Raises:
        OSError: there is no such model or folder, or the port is taken.
        ValueError: the model is no SAP-DETR, or an example is no picture.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed
    with tempfile.TemporaryDirectory(prefix="sap_detr_page_") as folder:
        # Gradio and Matplotlib read these when they are imported, hence before the page is.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "MPLCONFIGDIR": folder}
        import gradio as gr
        from gradio import processing_utils

        from ..weights.pretrained import load_detector
        from .page import build_page, example_pictures
        from .pictures import PictureDetector

        # A request made by hand may name an address instead of an uploaded file, and Gradio would fetch it.
        processing_utils.async_ssrf_protected_download = _refuse_address
        pictures = example_pictures(examples)
        page = build_page(PictureDetector(*load_detector(model)), pictures, **layout)
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=gr.themes.Soft(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=STYLE,
            max_file_size=MAX_FILE_SIZE,
            max_threads=8,
            state_session_capacity=MOST_VISITORS,
            # Nothing that reaches beyond this process.
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"The page is at {url} (Ctrl+C ends it).", flush=True)
        page.block_thread()


async def _refuse_address(url: str, cache_dir: str) -> str:
    raise ValueError("Only uploaded files are accepted, no addresses.")
