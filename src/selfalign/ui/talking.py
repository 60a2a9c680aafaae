"""The page on which a person talks to a model of a run."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from selfalign.ui.chat import ChatRequest, models_of
from selfalign.ui.pages import whole
from selfalign.ui.site import RunRoot, run_page, site_of

router = APIRouter()


@router.get("/runs/{name}/chat")
def chat(request: Request, root: RunRoot) -> HTMLResponse:
    """Show which models there are, and room to talk."""
    return run_page(request, root, "chat.jinja", "chat", models=models_of(root))


@router.post("/runs/{name}/chat")
async def reply(request: Request, root: RunRoot, said: ChatRequest) -> dict[str, str | int | None]:
    """Have a model answer; `text` goes back to it in the next turn, `shown` hides nothing."""
    answer = await site_of(request).chat.reply(root, said)
    return {
        "text": answer.text,
        "shown": None if answer.text is None else whole(answer.text),
        "finish_reason": answer.finish_reason,
        "tokens": answer.num_tokens,
    }
